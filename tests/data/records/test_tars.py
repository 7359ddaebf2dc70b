"""GLDv2's tars, read as they are: the same records as from the tree, and damaged tars."""

import hashlib
import io
import os
import tarfile

import numpy as np
import pytest
from gldv2_files import files_of, jpeg, name_of, settings, write_gldv2

from dolg_tf.data.records import shards, tars
from dolg_tf.data.records.build import build_records
from dolg_tf.data.records.label_lists import read_photos
from dolg_tf.stage.config import InputError

# tar number: (format, what stands before a/b/c)
KINDS = [(tarfile.USTAR_FORMAT, ""), (tarfile.GNU_FORMAT, "./"), (tarfile.PAX_FORMAT, "é" * 150)]


def add(archive, name, data):
    member = tarfile.TarInfo(name)
    member.size = len(data)
    archive.addfile(member, io.BytesIO(data))


@pytest.fixture
def folder(tmp_path):
    """The 16 photos as a tree, as three tars, and the MD5 of these."""
    write_gldv2(tmp_path)
    (tmp_path / "tars").mkdir()
    (tmp_path / "md5").mkdir()
    for tar, (kind, before) in enumerate(KINDS):
        path = tmp_path / "tars" / f"images_{tar:03d}.tar"
        with tarfile.open(path, "w", format=kind) as archive:
            root = tarfile.TarInfo("folder")
            root.type = tarfile.DIRTYPE
            archive.addfile(root)
            add(archive, f"{before}f/f/f/fffffffffffffff{tar}.jpg", b"in no list")
            add(archive, f"{name_of(tar)}-copy.jpg", b"its id only begins as a listed one")
            for number in range(tar, 16, 3):
                name = name_of(number)
                prefix = f"{before}{'' if before.endswith('/') or not before else '/'}"
                add(archive, f"{prefix}{name[0]}/{name[1]}/{name[2]}/{name}.jpg", jpeg(number))
        write_md5(path, bare=tar == 0)
    return tmp_path


def write_md5(tar, bare=False):
    text = hashlib.md5(tar.read_bytes(), usedforsecurity=False).hexdigest()
    path = tar.parent.parent / "md5" / f"md5.{tar.stem}.txt"
    path.write_text(text.upper() if bare else f"{text}  {tar.name}\n")


def from_tars(folder, **changes):
    return settings(folder, images_dir=str(folder / "tars"), **changes)


@pytest.mark.parametrize("checked", [True, False])
def test_the_same_records_as_from_the_tree(folder, checked):
    build_records(settings(folder))
    md5_dir = str(folder / "md5") if checked else ""
    summary = build_records(
        from_tars(folder, output_dir=str(folder / "other"), md5_dir=md5_dir, processes=1 + checked)
    )
    assert summary["left_out"] == 0
    assert files_of(folder / "records") == files_of(folder / "other")


def test_photo_in_no_tar_is_missing(folder):
    (folder / "tars" / "images_001.tar").unlink()
    assert build_records(from_tars(folder))["odd_photos"]["missing"] == 5
    lines = (folder / "records" / "odd_photos.tsv").read_text().splitlines()[1:]
    expected = {
        f"{name_of(number)}\t{folder}/tars/images_*.tar\tmissing\tno such file"
        for number in range(1, 16, 3)
    }
    assert set(lines) == expected


def table(folder):
    return read_photos(from_tars(folder))[0]


def test_notes_are_kept_and_outdated_ones_are_not(folder, tmp_path, monkeypatch):
    walked, members = [], tars._members
    monkeypatch.setattr(
        tars, "_members", lambda tar, hashed: walked.append(tar.name) or members(tar, hashed)
    )
    every = [f"images_{tar:03d}.tar" for tar in range(3)]

    def locate(md5_dir=""):
        walked.clear()
        return tars.locate(table(folder), tmp_path / "notes", md5_dir, 1)

    found = [shards.read_photo(photo) for photo in locate()]
    assert walked == every
    by_id = {name_of(number): jpeg(number) for number in range(16)}
    assert found == [by_id[photo.id] for photo in table(folder)]
    locate()
    assert walked == []
    locate(str(folder / "md5"))  # now they are hashed too
    assert walked == every
    locate(str(folder / "md5"))
    assert walked == []
    with tarfile.open(folder / "tars" / every[1], "a") as archive:
        add(archive, "another.jpg", b"x")
    locate()  # whose MD5 nobody asks for
    assert walked == every[1:2]


def cut_in_a_photo(path):
    path.write_bytes(path.read_bytes()[:5000])


def cut_between_photos(path):
    with tarfile.open(path) as archive:
        start = archive.getmembers()[-1].offset
    path.write_bytes(path.read_bytes()[:start])


def damage_a_header(path):
    with tarfile.open(path) as archive:
        start = archive.getmembers()[-2].offset
    data = bytearray(path.read_bytes())
    data[start + 3] ^= 1
    path.write_bytes(data)


def empty(path):
    path.write_bytes(b"")


def foreign(path):
    path.write_bytes(b"<html>not found</html>" * 100)


@pytest.mark.parametrize(
    "damage", [cut_in_a_photo, cut_between_photos, damage_a_header, empty, foreign]
)
@pytest.mark.parametrize("hashed", [True, False])
def test_damaged_tar_is_named(folder, damage, hashed):
    tar = folder / "tars" / "images_001.tar"
    damage(tar)
    write_md5(tar)
    with pytest.raises(InputError, match=r"images_001\.tar: damaged or cut short.*download it"):
        build_records(from_tars(folder, md5_dir=str(folder / "md5") if hashed else ""))
    kept = sorted(path.name for path in (folder / "records/.building/tars").iterdir())
    assert kept == ["images_000.npz"]


def test_wrong_md5(folder):
    md5_dir = folder / "md5"
    options = from_tars(folder, md5_dir=str(md5_dir))
    data = bytearray((folder / "tars" / "images_002.tar").read_bytes())
    data[-1] ^= 1  # behind the end: tarfile does not look at it
    (folder / "tars" / "images_002.tar").write_bytes(data)
    with pytest.raises(InputError, match=r"images_002\.tar: its MD5 is [0-9a-f]{32}, but must be"):
        build_records(options)
    (md5_dir / "md5.images_002.txt").write_text("<html>")
    with pytest.raises(InputError, match=r"md5\.images_002\.txt: '<html>' is not an MD5"):
        build_records(options)
    (md5_dir / "md5.images_002.txt").unlink()
    with pytest.raises(
        InputError, match=r"md5\.images_002\.txt: no such file; it holds the MD5 of .*002"
    ):
        build_records(options)
    with pytest.raises(InputError, match=r"--md5_dir=x checks tars, but .* holds none"):
        build_records(settings(folder, md5_dir="x"))


@pytest.mark.parametrize(("tar", "message"), [(1, "it twice"), (2, r".*images_001\.tar too")])
def test_photo_twice(folder, tar, message):
    with tarfile.open(folder / "tars" / f"images_{tar:03d}.tar", "a") as archive:
        add(archive, f"{name_of(1)}.jpg", jpeg(1))
    with pytest.raises(
        InputError, match=rf"images_{tar:03d}\.tar: image {name_of(1)} is in {message}"
    ):
        build_records(from_tars(folder))


def test_member_that_is_no_file(tmp_path):
    path = tmp_path / "images_000.tar"
    with tarfile.open(path, "w") as archive:
        link = tarfile.TarInfo("a/b/c/abc1.jpg")
        link.type, link.linkname = tarfile.SYMTYPE, "/etc/hostname"
        archive.addfile(link)
    tars.index_tar(path, tmp_path, "")
    with np.load(tmp_path / "images_000.npz") as note:
        assert len(note["ids"]) == len(note["offsets"]) == 0


@pytest.mark.parametrize("damage", [b"", b"PK\x03\x04 cut", b"\x93NUMPY\x01\x00\x0e\x00{'a': ("])
def test_a_damaged_note_is_written_anew(tmp_path, damage):
    path, note = tmp_path / "images_000.tar", tmp_path / "images_000.npz"
    with tarfile.open(path, "w") as archive:
        add(archive, "a/b/c/abc1.jpg", jpeg(1))
    note.write_bytes(damage)
    tars.index_tar(path, tmp_path, "")
    with np.load(note) as found:
        assert len(found["ids"]) == 1


def test_a_pipe_in_the_place_of_a_tar(tmp_path):
    os.mkfifo(tmp_path / "images_000.tar")
    with pytest.raises(InputError, match=r"images_000\.tar: not a file"):
        tars.index_tar(tmp_path / "images_000.tar", tmp_path, "")

"""Archives and folders as people download them become the benchmark's folders."""

import csv
import dataclasses
import gzip
import io
import json
import os
import pickle
import signal
import subprocess
import sys
import tarfile
import time

import pytest

from dolg_tf.evaluation.revisited import archives as photo_archives
from dolg_tf.evaluation.revisited.downloads import DATASETS
from dolg_tf.evaluation.revisited.prepare import PrepareConfig, prepare
from dolg_tf.retrieval.ground_truth import load_ground_truth
from dolg_tf.stage import files
from dolg_tf.stage.config import InputError

OXFORD = [f"all_souls_{number:06d}" for number in range(4)]
PARIS = [f"paris_{name}_000001" for name in ("defense", "eiffel", "louvre", "moulinrouge")]
DISTRACTORS = [f"{number}/photo{number}{other}.jpg" for number in (1, 2, 3) for other in "ab"]


def photo(name):
    return f"photo {name}".encode() * 300


def packed(name):
    """Returns what the archives hold for a listed path."""
    return photo(name if name in DISTRACTORS else name.removesuffix(".jpg"))


def write_truth(path, names, change=()):
    query = {"bbx": [0, 0, 9, 9], "easy": [0], "hard": [], "junk": []}
    truth = {"imlist": names[:-1], "qimlist": names[-1:], "gnd": [query]} | dict(change)
    path.write_bytes(pickle.dumps(truth))


def write_tar(path, members):
    """Writes {path in the archive: bytes, or a TarInfo} as a .tar.gz."""
    with tarfile.open(path, "w:gz") as archive:
        for name, data in members.items():
            if isinstance(data, tarfile.TarInfo):
                archive.addfile(data)
                continue
            member = tarfile.TarInfo(name)
            member.size = len(data)
            archive.addfile(member, io.BytesIO(data))


@pytest.fixture
def downloads(tmp_path, monkeypatch):
    """Archives of all three, with as few photos as the tests declare them to have."""
    for name, count in (("roxford5k", 4), ("rparis6k", 4), ("revisitop1m", 6)):
        archives = DATASETS[name].archives[:3]
        few = dataclasses.replace(DATASETS[name], photos=count, archives=archives)
        monkeypatch.setitem(DATASETS, name, few)
    folder = tmp_path / "downloads"
    folder.mkdir()
    write_truth(folder / "gnd_roxford5k.pkl", OXFORD)
    write_truth(folder / "gnd_rparis6k.pkl", PARIS)
    others = {"README": b"x", "not_listed_000001.jpg": b"y"}
    oxford = {f"{name}.jpg": photo(name) for name in OXFORD}
    write_tar(folder / "oxbuild_images.tgz", others | oxford)
    for part in (0, 1):
        members = {f"paris/{name.split('_')[1]}/{name}.jpg": photo(name) for name in PARIS[part::2]}
        write_tar(folder / f"paris_{part + 1}-v1.tgz", others | members)
    (folder / "revisitop1m.txt").write_text("\n".join(DISTRACTORS) + "\n")
    for number in (1, 2, 3):
        members = {f"./{name}": photo(name) for name in DISTRACTORS if name[0] == str(number)}
        write_tar(folder / f"revisitop1m.{number}.tar.gz", others | members)
    return folder


def config(downloads, dataset="roxford5k", **options):
    output = options.pop("output", downloads.parent / "datasets")
    return PrepareConfig(dataset=dataset, downloads=str(downloads), output=str(output), **options)


def contents(folder):
    return {
        path.relative_to(folder).as_posix(): path.read_bytes()
        for path in folder.rglob("*")
        if path.is_file()
    }


@pytest.mark.parametrize(
    ("dataset", "names", "variant"),
    [
        ("roxford5k", [f"{name}.jpg" for name in OXFORD], "original"),
        ("rparis6k", [f"{name}.jpg" for name in PARIS], "blurred"),
        ("revisitop1m", DISTRACTORS, None),
    ],
)
def test_layout_from_archives(downloads, dataset, names, variant):
    summary = prepare(config(downloads, dataset))
    folder = downloads.parent / "datasets" / dataset
    found = contents(folder)
    lists = {name for name in found if not name.startswith("jpg/")}
    assert {name: found[name] for name in found if name not in lists} == {
        f"jpg/{name}": packed(name) for name in names
    }
    expected = {"revisitop1m.txt", "revisitop1m.csv"}
    if dataset != "revisitop1m":
        expected = {f"gnd_{dataset}.pkl"}
        assert load_ground_truth(folder / f"gnd_{dataset}.pkl").name == f"gnd_{dataset}"
    assert lists == expected | {"prepared.json"}
    assert summary == json.loads(found["prepared.json"])
    assert (summary["variant"], summary["photos"], summary["missing"]) == (variant, len(names), 0)


def test_distractors_are_what_extraction_takes(downloads):
    from dolg_tf.retrieval.extract.photos import PhotosConfig, list_photos

    prepare(config(downloads, "revisitop1m"))
    folder = downloads.parent / "datasets/revisitop1m"
    with (folder / "revisitop1m.csv").open(newline="") as file:
        assert [row["path"] for row in csv.DictReader(file)] == DISTRACTORS
    settings = PhotosConfig(
        images=str(folder / "revisitop1m.csv"), image_root=str(folder / "jpg"), output="x"
    )
    for listed, name in zip(list_photos(settings).photos, DISTRACTORS, strict=True):
        assert listed.path.read_bytes() == photo(name)


@pytest.mark.parametrize("inner", ["", "jpg", "a/b"])
def test_unpacked_photos(downloads, inner):
    (downloads / "oxbuild_images.tgz").unlink()
    folder = downloads / inner
    folder.mkdir(parents=True, exist_ok=True)
    for name in OXFORD:
        (folder / f"{name}.jpg").write_bytes(photo(name))
    summary = prepare(config(downloads))
    assert summary["variant"] == "unknown" and summary["missing"] == 0
    found = contents(downloads.parent / "datasets/roxford5k/jpg")
    assert found == {f"{name}.jpg": photo(name) for name in OXFORD}
    # Given later, and not forgotten.
    assert prepare(config(downloads, variant="blurred"))["variant"] == "blurred"
    assert prepare(config(downloads))["variant"] == "blurred"


def test_one_part_unpacked_on_another_disk(downloads, monkeypatch):
    def refuse(*_):
        raise OSError(18, "Invalid cross-device link")

    monkeypatch.setattr("pathlib.Path.hardlink_to", refuse)
    (downloads / "paris_2-v1.tgz").unlink()
    for name in PARIS:  # photos of archives come first
        (downloads / f"{name}.jpg").write_bytes(photo(name) if name in PARIS[1::2] else b"other")
    assert prepare(config(downloads, "rparis6k"))["variant"] == "mixed"
    found = contents(downloads.parent / "datasets/rparis6k/jpg")
    assert found == {f"{name}.jpg": photo(name) for name in PARIS}


def test_unknown_photos_beside_originals_are_not_said_to_be_blurred(downloads):
    for part in (1, 2):
        archive = downloads / f"paris_{part}-v1.tgz"
        archive.rename(downloads / f"paris_{part}.tgz")
    (downloads / "paris_2.tgz").unlink()
    for name in PARIS[1::2]:
        (downloads / f"{name}.jpg").write_bytes(photo(name))
    assert prepare(config(downloads, "rparis6k"))["variant"] == "unknown"


def test_missing_photo_and_its_archive(downloads, caplog):
    (downloads / "paris_2-v1.tgz").rename(downloads.parent / "paris_2-v1.tgz")
    with pytest.raises(InputError, match=r"2 of 4 .*first is paris_eiffel_000001.jpg.*1 archives"):
        prepare(config(downloads, "rparis6k"))
    assert (
        "missing: paris_2.tgz, get it from https://www.robots.ox.ac.uk/~vgg/data/parisbuildings/"
        "paris_2-v1.tgz"
    ) in caplog.text and "paris_1" not in caplog.text
    folder = downloads.parent / "datasets/rparis6k"
    lines = (folder / "missing.txt").read_text().splitlines()
    assert lines == [f"{name}.jpg" for name in PARIS[1::2]]
    assert json.loads((folder / "prepared.json").read_text())["missing"] == 2
    # It arrives; the first one is no longer needed.
    (downloads.parent / "paris_2-v1.tgz").rename(downloads / "paris_2-v1.tgz")
    (downloads / "paris_1-v1.tgz").unlink()
    (downloads / "gnd_rparis6k.pkl").unlink()
    assert prepare(config(downloads, "rparis6k"))["variant"] == "blurred"
    assert not (folder / "missing.txt").exists()


def test_photo_in_no_archive(downloads):
    write_tar(downloads / "oxbuild_images.tgz", {f"{x}.jpg": photo(x) for x in OXFORD[1:]})
    with pytest.raises(InputError, match=r"1 of 4 .*all_souls_000000.jpg.*no archive holds them"):
        prepare(config(downloads))
    (downloads / f"{OXFORD[0]}.jpg").write_bytes(photo(OXFORD[0]))
    assert prepare(config(downloads))["missing"] == 0


def test_nothing_there(downloads, tmp_path, caplog):
    with pytest.raises(InputError, match=r"--downloads=.*none: no such folder"):
        prepare(config(downloads.parent / "none"))
    (tmp_path / "empty").mkdir()
    at = "http://cmp.felk.cvut.cz/revisitop/data/datasets/roxford5k/gnd_roxford5k.pkl"
    with pytest.raises(InputError, match=f"holds no gnd_roxford5k.pkl or .*; get it from {at}"):
        prepare(config(tmp_path / "empty"))
    assert "oxbuildings/oxbuild_images-v1.tgz" in caplog.text
    assert not (tmp_path / "datasets").exists()


# --- archives that are not to be trusted ---------------------------------------------


def cut(path, share):
    path.write_bytes(path.read_bytes()[: int(path.stat().st_size * share)])


def flip(path):
    data = bytearray(path.read_bytes())
    data[-6] ^= 1  # of the checksum
    path.write_bytes(data)


def cut_the_tar(path):
    data = gzip.decompress(path.read_bytes())
    path.write_bytes(gzip.compress(data[: len(data) // 2]))


@pytest.mark.parametrize(
    "damage",
    [
        lambda path: cut(path, 0.3),
        lambda path: cut(path, 0.9),
        lambda path: path.write_bytes(path.read_bytes()[:-1]),
        flip,
        cut_the_tar,
        lambda path: path.write_bytes(b"<html>404</html>"),
        lambda path: path.write_bytes(gzip.compress(b"no tar" * 1000)),
    ],
)
def test_damaged_archive(downloads, damage):
    path = downloads / "paris_2-v1.tgz"
    whole = path.read_bytes()
    damage(path)
    with pytest.raises(InputError, match=r"paris_2-v1\.tgz: damaged or cut short .*download it"):
        prepare(config(downloads, "rparis6k"))
    folder = downloads.parent / "datasets/rparis6k"
    # None of it was used, and the other one is done.
    assert contents(folder / "jpg") == {f"{name}.jpg": photo(name) for name in PARIS[::2]}
    assert not (folder / ".building/photos").exists()
    path.write_bytes(whole)
    assert prepare(config(downloads, "rparis6k"))["missing"] == 0


def linked(name, target, kind=tarfile.SYMTYPE):
    member = tarfile.TarInfo(name)
    member.type, member.linkname = kind, target
    return member


def test_members_that_lead_elsewhere(downloads, caplog):
    secret = downloads.parent / "secret"
    secret.write_bytes(b"secret")
    members = {
        f"../../{OXFORD[0]}.jpg": photo(OXFORD[0]),
        f"/{downloads.parent}/{OXFORD[1]}.jpg": photo(OXFORD[1]),
        "2": linked(f"{OXFORD[2]}.jpg", str(secret)),
        "3": linked(f"{OXFORD[3]}.jpg", f"/{downloads.parent}/{OXFORD[1]}.jpg", tarfile.LNKTYPE),
    }
    before = set(contents(downloads.parent))
    write_tar(downloads / "oxbuild_images.tgz", members)
    with pytest.raises(InputError, match="2 of 4 photos are missing"):
        prepare(config(downloads))
    assert caplog.text.count("is not a regular file: left out") == 2
    found = contents(downloads.parent / "datasets/roxford5k/jpg")
    assert found == {f"{name}.jpg": photo(name) for name in OXFORD[:2]}
    new = set(contents(downloads.parent)) - before
    assert all(name.startswith("datasets/roxford5k/") for name in new)


def test_list_that_leads_elsewhere(downloads):
    (downloads / "revisitop1m.txt").write_text("\n".join(["../evil.jpg", *DISTRACTORS[1:]]))
    write_tar(downloads / "revisitop1m.1.tar.gz", {"x/../evil.jpg": b"evil"})
    with pytest.raises(InputError, match=r"'\.\./evil.jpg' leads out of"):
        prepare(config(downloads, "revisitop1m"))
    assert not list(downloads.parent.rglob("evil.jpg"))


def test_photo_twice_or_of_a_wrong_size(downloads, monkeypatch):
    def fails(members, message):
        write_tar(downloads / "oxbuild_images.tgz", members)
        with pytest.raises(InputError, match=message):
            prepare(config(downloads))

    name = f"{OXFORD[0]}.jpg"
    fails({name: b"1", f"more/{name}": b"2"}, rf"images\.tgz: {name} is in it twice")
    fails({name: b""}, rf"images\.tgz: {name} has 0 bytes")
    monkeypatch.setattr(photo_archives, "_MOST_BYTES", 10)
    fails({name: b"x" * 11}, rf"images\.tgz: {name} has 11 bytes")


def test_unpacked_links_and_doubles(downloads, caplog):
    (downloads / "oxbuild_images.tgz").unlink()
    elsewhere = downloads.parent / "elsewhere"
    elsewhere.mkdir()
    for name in OXFORD:
        (elsewhere / f"{name}.jpg").write_bytes(photo(name))
        (downloads / f"{name}.jpg").symlink_to(elsewhere / f"{name}.jpg")
    (downloads / f"{OXFORD[0]}.jpg").unlink()
    (downloads / f"{OXFORD[0]}.jpg").symlink_to("/dev/null")
    (downloads / "loop").symlink_to(downloads)
    with pytest.raises(InputError, match="1 of 4 photos are missing"):
        prepare(config(downloads))
    assert f"{OXFORD[0]}.jpg is empty or not a regular file: left out" in caplog.text
    assert "loop is a link to a folder: not entered" in caplog.text
    target = downloads.parent / "datasets/roxford5k/jpg" / f"{OXFORD[1]}.jpg"
    assert not target.is_symlink() and target.read_bytes() == photo(OXFORD[1])
    (downloads / f"{OXFORD[0]}.jpg").unlink()
    for folder in ("a", "b"):
        (downloads / folder).mkdir()
        (downloads / folder / f"{OXFORD[0]}.jpg").write_bytes(photo(OXFORD[0]))
    with pytest.raises(InputError, match=r"b/all_souls_000000.jpg and .*a/.* are both .*keep one"):
        prepare(config(downloads))


# --- lists, variants -----------------------------------------------------------------


def test_lists_that_are_wrong(downloads):
    path = downloads / "gnd_roxford5k.pkl"
    write_truth(path, OXFORD[:3])
    with pytest.raises(InputError, match="names 3 photos instead of 4; download it again"):
        prepare(config(downloads))
    write_truth(path, [*OXFORD[:3], OXFORD[0]])
    with pytest.raises(InputError, match="names 3 photos instead of 4"):
        prepare(config(downloads))
    write_truth(path, OXFORD, {"gnd": [os.system]})
    with pytest.raises(InputError, match=r"refused: .*posix.system"):
        prepare(config(downloads))
    (downloads / "revisitop1m.txt").write_text("\n".join(DISTRACTORS)[:-14])  # cut short
    with pytest.raises(InputError, match="names 5 photos instead of 6"):
        prepare(config(downloads, "revisitop1m"))


def test_both_forms_of_a_ground_truth(downloads):
    from scipy.io import savemat

    names = {"imlist": OXFORD[:-1], "qimlist": OXFORD[-1:]}
    query = {"bbx": [1.0, 1, 9, 9], "easy": [1], "hard": [], "junk": []}
    savemat(
        downloads / "gnd_roxford5k.mat",
        {key: [[x] for x in value] for key, value in names.items()} | {"gnd": [query]},
    )
    assert prepare(config(downloads))["missing"] == 0
    assert (downloads.parent / "datasets/roxford5k/gnd_roxford5k.mat").is_file()
    write_truth(downloads / "gnd_roxford5k.pkl", OXFORD[::-1])
    with pytest.raises(InputError, match="names other photos than its other form"):
        prepare(config(downloads))


def test_variants(downloads):
    with pytest.raises(InputError, match="revisitop1m has only one variant"):
        config(downloads, "revisitop1m", variant="blurred")
    with pytest.raises(InputError, match=r"--variant=original contradicts .*paris_1-v1.tgz"):
        prepare(config(downloads, "rparis6k", variant="original"))
    assert prepare(config(downloads, variant="blurred"))["variant"] == "blurred"
    assert prepare(config(downloads))["variant"] == "blurred"
    path = downloads / "oxbuild_images.tgz"
    (downloads / "oxbuild_images-v1.tgz").write_bytes(path.read_bytes())
    with pytest.raises(
        InputError, match=r"images.tgz and .*-v1.tgz are two variants of one archive; keep one"
    ):
        prepare(config(downloads))
    path.unlink()
    with pytest.raises(InputError, match=r"holds photos of oxbuild_images.tgz, not .*-v1.tgz"):
        prepare(config(downloads))


# --- interrupted, repeated, two at once ----------------------------------------------


def test_goes_on_after_an_interruption(downloads, monkeypatch):
    unpack, opened = photo_archives.unpack, []

    def interrupted(archive, *args):
        opened.append(archive.name)
        yield next(unpacked := unpack(archive, *args))
        if archive.name == "paris_2-v1.tgz":
            raise KeyboardInterrupt
        yield from unpacked

    monkeypatch.setattr(photo_archives, "unpack", interrupted)
    with pytest.raises(KeyboardInterrupt):
        prepare(config(downloads, "rparis6k"))
    folder = downloads.parent / "datasets/rparis6k"
    assert len(contents(folder / "jpg")) == 2 and not (folder / ".building/photos").exists()
    assert json.loads((folder / "prepared.json").read_text())["missing"] == 2
    opened.clear()
    monkeypatch.setattr(
        photo_archives, "unpack", lambda *args: opened.append(args[0].name) or unpack(*args)
    )
    first = prepare(config(downloads, "rparis6k"))
    assert opened == ["paris_2-v1.tgz"]
    before = contents(folder)
    assert prepare(config(downloads, "rparis6k")) == first and opened == ["paris_2-v1.tgz"]
    assert contents(folder) == before


def test_two_at_once(downloads):
    folder = downloads.parent / "datasets/roxford5k"
    taken = pytest.raises(InputError, match="another process is preparing")
    with files.lock(folder / ".building/lock", ""), taken:
        prepare(config(downloads))
    assert prepare(config(downloads))["missing"] == 0


def test_command_line(tmp_path):
    command = [sys.executable, "-m", "dolg_tf", "prepare-revisited", "--dataset=roxford5k"]
    done = subprocess.run(
        [*command, f"--downloads={tmp_path}", f"--output={tmp_path / 'out'}"],
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 1 and "Traceback" not in done.stderr
    assert "missing: oxbuild_images.tgz, get it from https://" in done.stderr
    assert "no gnd_roxford5k.pkl" in done.stderr.splitlines()[-1]


@pytest.mark.slow
def test_a_real_signal(ground_truths, tmp_path):
    names = load_ground_truth(ground_truths / "gnd_roxford5k.pkl")
    members = {f"{id_}.jpg": os.urandom(20000) for id_ in (*names.index_ids, *names.query_ids)}
    write_tar(tmp_path / "oxbuild_images-v1.tgz", members)
    (tmp_path / "gnd_roxford5k.pkl").symlink_to(ground_truths / "gnd_roxford5k.pkl")
    command = [sys.executable, "-m", "dolg_tf", "prepare-revisited", "--dataset=roxford5k"]
    command += [f"--downloads={tmp_path}", f"--output={tmp_path / 'out'}"]
    # A test run in the background of a script has Ctrl-C switched off, which children inherit.
    before = signal.signal(signal.SIGINT, signal.default_int_handler)
    process = subprocess.Popen(command, stderr=subprocess.PIPE, text=True)
    signal.signal(signal.SIGINT, before)
    building = tmp_path / "out/roxford5k/.building/photos"
    while process.poll() is None and not (building / "100").exists():
        time.sleep(0.01)
    process.send_signal(signal.SIGINT)
    _, stderr = process.communicate(timeout=30)
    assert process.returncode == 130 and stderr.endswith("interrupted\n")
    assert not building.exists() and not (tmp_path / "out/roxford5k/jpg").exists()
    subprocess.run(command, check=True)
    found = contents(tmp_path / "out/roxford5k/jpg")
    assert found == members

import hashlib
import os
import pathlib
import pickle
import tempfile

import numpy as np
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from PIL import Image

from dolg_tf.retrieval.extract import photos as module
from dolg_tf.retrieval.extract.decoding import load_photo
from dolg_tf.retrieval.extract.photos import (
    Listing,
    Photo,
    PhotosConfig,
    list_named,
    list_photos,
)
from dolg_tf.stage.config import InputError

JPEG_HEAD = b"\xff\xd8\xff\xe0"


@pytest.fixture
def root(tmp_path):
    folder = tmp_path / "root"
    for name in ("b/2.JPG", "b/10.jpeg", "a/x.y.png", "c.jpg"):
        (folder / name).parent.mkdir(parents=True, exist_ok=True)
        (folder / name).write_bytes(name.encode())
    return folder


def _list(images, **options):
    return list_photos(PhotosConfig(images=str(images), output="unused", **options))


def _print(listing):
    return listing.fingerprints(listing.sizes(), 2).images


def _pickle(path, queries=("b/2", "c"), index=("c", "a/x.y", "b/10")):
    truth = {
        "imlist": list(index),
        "qimlist": list(queries),
        "gnd": [{"bbx": [1, 2, 3, 4], "easy": [0], "hard": [], "junk": []} for _ in queries],
    }
    path.write_bytes(pickle.dumps(truth))
    return path


def test_folder_is_sorted_and_told_apart(root, caplog):
    caplog.set_level("INFO")
    (root / "b/notes.txt").write_text("x")
    (root / "b/.hidden.jpg").write_text("x")
    listing = _list(root)
    assert [photo.id for photo in listing.photos] == ["c", "a/x.y", "b/10", "b/2"]
    assert [photo.path.name for photo in listing.photos] == ["c.jpg", "x.y.png", "10.jpeg", "2.JPG"]
    assert not listing.crop
    assert "1 other files (not photos)" in caplog.text and "1 hidden files" in caplog.text


def test_links_to_folders_are_told(root, caplog):
    (root / "a/link").symlink_to(root / "b")
    (root / "a/circle").symlink_to("circle")  # leads nowhere, and hides no photo
    assert len(_list(root).photos) == 4
    assert "1 links to folders are not followed" in caplog.text


def test_a_folder_that_cannot_be_read_is_no_empty_one(root, monkeypatch):
    scan = os.scandir

    def scandir(path):
        if str(path).endswith("/b"):
            raise PermissionError(13, "Permission denied", path)
        return scan(path)

    monkeypatch.setattr(os, "scandir", scandir)
    with pytest.raises(PermissionError, match="root/b"):
        _list(root)


def test_names_are_made_plain(root):
    (root / "list.csv").write_text("id\n./c\nb//2\na/./x.y\n")
    photos = _list(root / "list.csv").photos
    assert [p.id for p in photos] == ["c", "b/2", "a/x.y"]
    assert all(p.path.exists() for p in photos)


def test_ids_are_relative_to_the_root(root):
    listing = _list(root / "b", image_root=str(root))
    assert [photo.id for photo in listing.photos] == ["b/10", "b/2"]
    with pytest.raises(InputError, match="is not inside --image_root"):
        _list(root, image_root=str(root / "b"))


def test_csv_by_path_and_by_id(root):
    (root / "list.csv").write_text("landmark,path\nx,b/2.JPG\ny,c.jpg\n")
    listing = _list(root / "list.csv")
    assert [(p.id, p.path.name) for p in listing.photos] == [("b/2", "2.JPG"), ("c", "c.jpg")]
    (root / "list.csv").write_text("\ufeffid\na/x.y\nb/2\n")
    listing = _list(root / "list.csv", image_root=str(root))
    assert [p.path.name for p in listing.photos] == ["x.y.png", "2.JPG"]


def test_a_file_of_exactly_that_name_comes_first(root):
    for name in ("photo", "photo.jpg", "x.webp", "x.webp.jpg", "d.jpg"):
        (root / name).write_bytes(b"")
    (root / "d").mkdir()  # a folder is no photo
    (root / "list.csv").write_text("path\nphoto\nx.webp\nd\n")
    listing = _list(root / "list.csv")
    assert [photo.path.name for photo in listing.photos] == ["photo", "x.webp", "d.jpg"]


def test_ground_truth_boxes_belong_to_queries(root, tmp_path):
    path = _pickle(tmp_path / "gnd_x.pkl")
    queries = _list(path, image_root=str(root), subset="query")
    assert [p.id for p in queries.photos] == ["b/2", "c"]
    assert queries.crop and queries.photos[0].box == (1, 2, 3, 4)
    whole = _list(path, image_root=str(root), subset="query", crop_queries=False)
    assert not whole.crop and whole.photos[0].box is None
    index = _list(path, image_root=str(root), subset="index")
    assert [p.id for p in index.photos] == ["c", "a/x.y", "b/10"]
    assert not index.crop and all(p.box is None for p in index.photos)


def test_a_missing_photo_is_listed(root):
    (root / "list.csv").write_text("id\nb/none\nnowhere/x\nb/gone.png\n")
    photos = _list(root / "list.csv").photos
    assert [p.id for p in photos] == ["b/none", "nowhere/x", "b/gone"]
    assert not any(p.path.exists() for p in photos)


def test_fingerprint_tells_ids_boxes_and_contents(root, tmp_path):
    path = _pickle(tmp_path / "gnd_x.pkl")

    def prints():
        whole = _list(path, image_root=str(root), subset="query", crop_queries=False)
        boxed = _list(path, image_root=str(root), subset="query")
        return [_print(whole), _print(boxed), _print(_list(root))]

    before = prints()
    assert before == prints() and len(set(before)) == 3
    (root / "c.jpg").write_bytes(b"another photo")
    assert not set(before) & set(prints())


@pytest.mark.parametrize(
    "name",
    ["../secret.jpg", "/etc/passwd.jpg", "b/../../secret", "..", "", "ROOT/c.jpg", "b/../c.jpg"],
)
def test_a_photo_has_one_name(root, name):
    (root.parent / "secret.jpg").write_bytes(b"x")
    (root / "list.csv").write_text(f"path,n\nc.jpg,0\n{name.replace('ROOT', str(root))},1\n")
    with pytest.raises(InputError, match=r"list\.csv, line 3: '.*' cannot name a photo; give its"):
        _list(root / "list.csv")


def test_a_link_must_not_lead_out_of_the_root(root):
    (root / "a/up").symlink_to(root.parent)
    (root / "list.csv").write_text("path\na/up/secret.jpg\n")
    with pytest.raises(InputError, match="'a/up' leads out of"):
        _list(root / "list.csv")


def test_photos_of_one_name_keep_their_suffixes_and_are_found_by_them(root, caplog):
    (root / "b/2.png").write_bytes(b"x")
    (root / "c").write_text("notes")
    listing = _list(root)
    assert [photo.id for photo in listing.photos] == [
        "c.jpg",
        "a/x.y",
        "b/10",
        "b/2.JPG",
        "b/2.png",
    ]
    assert (
        "3 photos have the name of another file but for the suffix, such as c.jpg and b/2.JPG"
        in (caplog.text)
    )
    again = list_named([photo.id for photo in listing.photos], root, "here", upright=True)
    assert again.photos == listing.photos


def test_a_name_of_two_photos_is_told_with_both(root):
    (root / "b/2.png").write_bytes(b"x")
    (root / "list.csv").write_text("id\nb/2\n")
    with pytest.raises(InputError, match=r"'b/2' may be 2.JPG or 2.png"):
        _list(root / "list.csv")
    (root / "list.csv").write_text("id\nb/2.png\nb/2.JPG\n")
    assert [photo.id for photo in _list(root / "list.csv").photos] == ["b/2.png", "b/2.JPG"]
    (root / "list.csv").write_text("id\nc\nc.jpg\n")
    with pytest.raises(InputError, match=r"/c.jpg and .*/c.jpg have the same id, 'c'"):
        _list(root / "list.csv")


@settings(max_examples=150, deadline=None, suppress_health_check=list(HealthCheck))
@given(
    st.sets(
        st.tuples(
            st.sampled_from(["", "d/", "d/e.jpg/"]),
            st.sampled_from(["a", "b", "a.b", "a ", "é", "_", "a.", "a..", "(1)", "=x"]),
            st.lists(
                st.sampled_from([".jpg", ".JPG", ".jpeg", ".png", ".webp", ".txt"]), max_size=3
            ),
        ).map(lambda parts: parts[0] + parts[1] + "".join(parts[2])),
        min_size=1,
        max_size=12,
    )
)
def test_an_id_leads_back_to_its_file(names):
    """For any names in a folder: no two photos have one id, and a list of ids finds the files."""
    with tempfile.TemporaryDirectory() as folder:
        folder = pathlib.Path(folder)
        for name in ("z.jpg", *names):
            if not (folder / name).exists():
                (folder / name).parent.mkdir(parents=True, exist_ok=True)
                (folder / name).write_bytes(JPEG_HEAD)
        listing = list_photos(PhotosConfig(images=str(folder), output="unused"))
        ids = [photo.id for photo in listing.photos]
        found = list_named(ids, folder, "here", upright=True)
        assert found.photos == listing.photos and len(set(ids)) == len(ids)
        assert len(ids) == 1 + sum(not name.endswith(".txt") for name in names)
        paths = [os.path.relpath(photo.file, folder) for photo in listing.photos]
        assert list_named(paths, folder, "here", upright=True).photos == listing.photos


def test_ids_of_older_sets_find_photos_with_two_suffixes(root):
    for name in ("tower.jpg.jpg", "b/gate.png.JPG", "x.jpg.png", "x.jpg"):
        (root / name).write_bytes(b"x")
    found = list_named(["tower.jpg", "b/gate.png.JPG", "x.jpg"], root, "here", upright=True).photos
    assert [photo.path.name for photo in found] == ["tower.jpg.jpg", "gate.png.JPG", "x.jpg"]
    assert [photo.id for photo in found] == ["tower.jpg.jpg", "b/gate.png.JPG", "x"]


def test_photos_of_a_folder_are_told_by_their_content(root, caplog):
    caplog.set_level("INFO")
    for name in (".thumbnails/s.jpg", "b/.DS_Store", "b/p.webp", "b/q.jfif", "b/r.BMP"):
        (root / name).parent.mkdir(exist_ok=True)
        (root / name).write_bytes(b"")
    (root / "b/without suffix").write_bytes(JPEG_HEAD)
    (root / "b/v1.2").write_bytes(b"GIF89a")
    (root / "b/notes").write_bytes(b"no photo")
    (root / "b/list.csv").write_bytes(JPEG_HEAD)  # its suffix tells
    os.mkfifo(root / "b/pipe")
    os.mkfifo(root / "b/pipe.jpg")
    (root / "b/gone.jpg").symlink_to(root / "nowhere")
    (root / "b/link.jpg").symlink_to(root / "c.jpg")
    listing = _list(root / "b")
    names = ["10", "2", "gone", "link", "p.webp", "q.jfif", "r.BMP", "v1.2", "without suffix"]
    assert [photo.id for photo in listing.photos] == sorted(names)
    assert "4 other files (not photos)" in caplog.text and "1 hidden files" in caplog.text
    assert "1 hidden files" in caplog.text
    assert dict(zip(names, listing.sizes(), strict=False))["gone"] == -1


def test_what_only_begins_like_a_photo_is_none(root, caplog):
    (root / "b/README").write_text("BM notes: how these photos were taken, and by whom\n")
    (root / "b/list").write_text("BM")
    Image.new("RGB", (3, 2)).save(root / "b/window", "BMP")
    for name in ("2.NEF", "2.dng", "other.cr2"):
        Image.new("RGB", (3, 2)).save(root / "b" / name, "TIFF")
    listing = _list(root / "b")
    assert [photo.id for photo in listing.photos] == ["10", "2", "window"]
    assert "3 camera raws are ignored; develop them to JPEGs" in caplog.text


def test_sidecars_and_films_are_not_opened(root, monkeypatch):
    for name in ("2.xmp", "2.AAE", "2.mov", "2.json", "clip.thm", "notes.pdf"):
        (root / "b" / name).write_bytes(JPEG_HEAD)
    opened = []
    monkeypatch.setattr("os.open", lambda path, *_: opened.append(path))
    assert [photo.id for photo in _list(root / "b").photos] == ["10", "2"]
    assert not opened


@pytest.mark.parametrize(
    "name", [" lead", "a\nb", "a\x1b[31mb", "a\u2028b", b"a\xe4b".decode("utf8", "surrogateescape")]
)
def test_a_name_that_no_list_can_hold_is_one_bad_photo(root, name):
    (root / f"{name}.jpg").write_bytes(b"x")
    photos = _list(root).photos
    assert [photo.id for photo in photos if photo.fault] == [name]
    (fault,) = {photo.fault for photo in photos} - {""}
    assert fault.startswith("its name ") and fault.endswith("; rename it")
    assert load_photo(next(photo for photo in photos if photo.fault)).endswith(fault)


def test_photos_are_turned_by_their_source(root, tmp_path):
    benchmark, own = _pickle(tmp_path / "gnd_x.pkl"), tmp_path / "gnd_own.pkl"
    own.write_bytes(pickle.dumps({**pickle.loads(benchmark.read_bytes()), "upright": True}))
    (root / "list.csv").write_text("id\nc\n")
    of_gnd = {"image_root": str(root), "subset": "query"}
    for images, options, own_choice in [
        (root, {}, True),
        (root / "list.csv", {}, True),
        (root / "c.jpg", {}, True),
        (benchmark, of_gnd, False),
        (own, of_gnd, True),
        (own, of_gnd | {"subset": "index"}, True),
    ]:
        for asked, expected in ((None, own_choice), (True, True), (False, False)):
            listing = _list(images, upright=asked, **options)
            assert listing.upright is expected
            assert {photo.turn for photo in listing.photos} == {expected}


def test_what_cannot_be_listed(root, tmp_path):
    path = _pickle(tmp_path / "gnd_x.pkl")
    (tmp_path / "empty").mkdir()
    (root / "list.csv").write_text("name\nx\n")
    (root / "binary.csv").write_bytes(b"path\n\xff\xfe\n")
    (root / "notes.txt").write_text("x")
    os.mkfifo(root / "pipe")
    for images, options, told in [
        (path, {}, "needs --subset"),
        (root, {"subset": "query"}, "takes no --subset"),
        (root / "none", {}, "no such file or folder"),
        (tmp_path / "empty", {}, "no photos"),
        (root / "list.csv", {}, "line 1: no column 'path' or 'id'"),
        (root / "binary.csv", {}, "binary.csv, after line 0"),
        (root / "notes.txt", {}, "is not a folder, a photo, a .csv"),
        (root / "pipe", {}, "no such file or folder"),
        (root, {"image_root": str(root / "none")}, "--image_root=.*none: no such folder"),
        (root / "none" / "train-*", {}, r"--images=.*train-\*: no such folder"),
    ]:
        with pytest.raises(InputError, match=told):
            _list(images, **options)
    for options in ({"subset": "all"}, {"batch_size": 0}, {"max_side": -1}, {"max_pixels": -1}):
        with pytest.raises(InputError, match="must be"):
            _list(root, **options)


# --- sizes and hashes of many photos --------------------------------------------------


@pytest.fixture
def photos(tmp_path):
    found = []
    for number in range(23):
        if number != 7:
            (tmp_path / f"{number}.jpg").write_bytes(b"x" * number)
        box = (1.0, 2.0, 3.0, 4.5) if number % 4 == 0 else None
        found.append(Photo(f"{number}", str(tmp_path / f"{number}.jpg"), box))
    (tmp_path / "folder.jpg").mkdir()
    return [*found, Photo("folder", tmp_path / "folder.jpg"), Photo("odd", "a\0b.jpg")]


def test_sizes_are_in_the_order_of_the_photos(photos, tmp_path, monkeypatch):
    monkeypatch.setattr(module, "_STAT_PHOTOS", 4)
    sizes = Listing(tmp_path, tuple(photos), False).sizes()
    expected = [number if number != 7 else -1 for number in range(23)] + [-1, -1]
    np.testing.assert_array_equal(sizes, expected)


def test_hashes_of_all_photos_do_not_depend_on_shards(photos, tmp_path):
    found = Listing(tmp_path, tuple(photos), False)
    sizes = found.sizes()
    prints = {size: found.fingerprints(sizes, size) for size in (1, 4, 100)}
    assert len({(p.names, p.images) for p in prints.values()}) == 1
    assert [len(p.shards) for p in prints.values()] == [25, 7, 1]
    text = "".join(
        repr((photo.id, photo.box, None if size < 0 else int(size)))
        for photo, size in zip(photos, sizes, strict=True)
    )
    assert prints[4].images == prints[100].shards[0] == hashlib.sha256(text.encode()).hexdigest()


def test_what_changes_which_hash(photos, tmp_path):
    def prints(photos, sizes):
        return Listing(tmp_path, tuple(photos), False).fingerprints(sizes, 5)

    sizes = np.arange(25)
    before = prints(photos, sizes)
    larger = prints(photos, sizes + (np.arange(25) == 12))
    assert larger.names == before.names and larger.images != before.images
    changed = [a != b for a, b in zip(before.shards, larger.shards, strict=True)]
    assert changed == [False, False, True, False, False]
    for other in (Photo("12", "x.jpg", None), Photo("12x", "x.jpg", (1.0, 2.0, 3.0, 4.5))):
        moved = prints([*photos[:12], other, *photos[13:]], sizes)
        assert moved.names != before.names and moved.images != before.images

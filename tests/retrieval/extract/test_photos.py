import hashlib
import os
import pickle

import numpy as np
import pytest

from dolg_tf.data.records import tfrecord
from dolg_tf.retrieval.extract import photos as module
from dolg_tf.retrieval.extract.photos import Listing, Photo, PhotosConfig, list_photos
from dolg_tf.stage.config import InputError


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
    assert "2 other files" in caplog.text


def test_links_to_folders_are_told(root, caplog):
    (root / "a/link").symlink_to(root / "b")
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


def test_two_suffixes_of_one_id(root):
    (root / "b/2.png").write_bytes(b"x")
    with pytest.raises(InputError, match="have the same id, 'b/2'"):
        _list(root)
    (root / "list.csv").write_text("id\nb/2\n")
    with pytest.raises(InputError, match=r"may be 2.JPG or 2.png"):
        _list(root / "list.csv")
    (root / "list.csv").write_text("id\nc\nc\n")
    with pytest.raises(InputError, match="have the same id, 'c'"):
        _list(root / "list.csv")


def test_what_cannot_be_listed(root, tmp_path):
    path = _pickle(tmp_path / "gnd_x.pkl")
    (tmp_path / "empty").mkdir()
    (root / "list.csv").write_text("name\nx\n")
    (root / "binary.csv").write_bytes(b"path\n\xff\xfe\n")
    for images, options, told in [
        (path, {}, "needs --subset"),
        (root, {"subset": "query"}, "takes no --subset"),
        (root / "none", {}, "no such file or folder"),
        (tmp_path / "empty", {}, "no photos"),
        (root / "list.csv", {}, "line 1: no column 'path' or 'id'"),
        (root / "binary.csv", {}, "binary.csv, after line 0"),
        (root / "c.jpg", {}, "is not a folder, a .csv"),
        (root, {"image_root": str(root / "none")}, "--image_root=.*none: no such folder"),
        (root / "none" / "train-*", {}, r"--images=.*train-\*: no such folder"),
    ]:
        with pytest.raises(InputError, match=told):
            _list(images, **options)
    for options in ({"subset": "all"}, {"batch_size": 0}, {"max_side": -1}, {"max_bad": -1}):
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


# --- photos in TFRecords --------------------------------------------------------------

PHOTOS = {f"photo {number}": bytes([number]) * (1 + 37 * number) for number in range(7)}


def _write(path, photos):
    tfrecord.write_shard(path, [tfrecord.encode(data, id_, 3, 4, 5) for id_, data in photos])


@pytest.fixture
def folder(tmp_path):
    photos = list(PHOTOS.items())
    _write(tmp_path / "train-00000-of-00003", photos[:4])
    _write(tmp_path / "train-00001-of-00003", [])
    _write(tmp_path / "train-00002-of-00003", photos[4:])
    return tmp_path


def test_each_record_is_a_photo(folder):
    listing = _list(folder / "train-*")
    assert [photo.id for photo in listing.photos] == list(PHOTOS)
    assert [photo.read() for photo in listing.photos] == list(PHOTOS.values())
    assert listing.image_root == folder and not listing.crop
    assert [photo.id for photo in _list(folder / "train-00002-of-00003").photos] == list(PHOTOS)[4:]


def test_a_pattern_of_folders(folder):
    (folder / "deep").mkdir()
    (folder / "train-00000-of-00003").rename(folder / "deep/train-0")
    listing = _list(folder / "d*/train-*")
    assert len(listing.photos) == 4 and listing.image_root == folder


def test_the_size_of_a_record_is_in_the_fingerprint(folder):
    def prints():
        listing = _list(folder / "train-*")
        sizes = listing.sizes()
        assert (sizes > 0).all()
        return listing.fingerprints(sizes, 4)

    before = prints()
    assert before == prints()
    _write(folder / "train-00002-of-00003", [(id_, b"x") for id_ in list(PHOTOS)[4:]])
    after = prints()
    assert before.names == after.names and before.images != after.images
    assert [x == y for x, y in zip(before.shards, after.shards, strict=True)] == [True, False]


@pytest.mark.parametrize("place", [30, -10])
def test_a_damaged_record_is_told_when_it_is_read(folder, place):
    path = folder / "train-00002-of-00003"
    data = np.fromfile(path, np.uint8)
    second = _list(path).photos[1]
    place += second.start if place > 0 else second.start + second.record_size
    data[place] ^= 1
    data.tofile(path)
    with pytest.raises(
        (InputError, ValueError), match=r"checksum is wrong|no image/|not a tf.train"
    ):
        for photo in _list(path).photos:
            photo.read()


def test_what_is_no_photo_record(folder):
    def put(*examples):
        tfrecord.write_shard(folder / "odd", examples)

    put(tfrecord.encode(b"x", "", 1, 1, None))
    with pytest.raises(InputError, match="odd, record at byte 0: no image/id"):
        _list(folder / "odd")
    put(tfrecord.encode(b"x", "a", 1, 1, None), b"\xff" * 9)
    with pytest.raises(InputError, match=r"odd, record at byte \d+: not a tf.train.Example"):
        _list(folder / "odd")
    put(tfrecord.encode(b"x", "a", 1, 1, None).replace(b"image/id", b"image/ix"))
    with pytest.raises(InputError, match="no image/id"):
        _list(folder / "odd")
    put(tfrecord.encode(b"x", "a", 1, 1, None).replace(b"image/encoded", b"image/encodeX"))
    with pytest.raises(ValueError, match="no image/encoded"):
        _list(folder / "odd").photos[0].read()
    put(*[tfrecord.encode(b"x", "a", 1, 1, None)] * 2)
    with pytest.raises(InputError, match="record at byte 0 have the same id, 'a'"):
        _list(folder / "odd")


def test_files_that_are_none(folder):
    with pytest.raises(InputError, match="no file matches"):
        _list(folder / "valid-*")
    path = folder / "train-00000-of-00003"
    path.write_bytes(path.read_bytes()[:-3])
    with pytest.raises(InputError, match="the file ends inside the record"):
        _list(folder / "train-*")
    (folder / "notes").write_text("no record at all")
    with pytest.raises(InputError, match="this is not a TFRecord file"):
        _list(folder / "notes")
    with pytest.raises(InputError, match="takes no --subset"):
        _list(folder / "train-*", subset="query")

import os
import pickle

import pytest

from dolg_tf.retrieval.extract.photos import PhotosConfig, list_photos
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
    with pytest.raises(
        InputError, match=r"list\.csv, line 3: '.*' is no name of a photo; give its"
    ):
        _list(root / "list.csv")


def test_a_link_must_not_lead_out_of_the_root(root):
    (root / "a/up").symlink_to(root.parent)
    (root / "list.csv").write_text("path\na/up/secret.jpg\n")
    with pytest.raises(InputError, match="'a/up' leads out of"):
        _list(root / "list.csv")


def test_two_suffixes_of_one_id(root):
    (root / "b/2.png").write_bytes(b"x")
    with pytest.raises(InputError, match="have one id, 'b/2'"):
        _list(root)
    (root / "list.csv").write_text("id\nb/2\n")
    with pytest.raises(InputError, match=r"may be 2.JPG or 2.png"):
        _list(root / "list.csv")
    (root / "list.csv").write_text("id\nc\nc\n")
    with pytest.raises(InputError, match="have one id, 'c'"):
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
        (root / "c.jpg", {}, "neither a folder"),
        (root, {"image_root": str(root / "none")}, "--image_root=.*none: no such folder"),
        (root / "none" / "train-*", {}, r"--images=.*train-\*: no such folder"),
    ]:
        with pytest.raises(InputError, match=told):
            _list(images, **options)
    for options in ({"subset": "all"}, {"batch_size": 0}, {"max_side": -1}, {"max_bad": -1}):
        with pytest.raises(InputError, match="must be"):
            _list(root, **options)

"""Lists of photos: GLDv2's, a person's own, and what is wrong with them."""

import pytest

from dolg_tf.data.records import shards
from dolg_tf.data.records.build import RecordsConfig, build_records
from dolg_tf.data.records.label_lists import ListsConfig, read_photos
from dolg_tf.stage.config import InputError


@pytest.mark.parametrize(
    ("kind", "text", "message"),
    [
        ("clean", "landmark_id,pictures\n", "list.csv, line 1: no column 'images'"),
        ("clean", "", "list.csv, line 1: no column 'images'"),
        ("clean", "landmark_id,images\n", "it lists no photos"),
        ("clean", "landmark_id,images\n3,abcd\n4,../etc\n", "line 3: '../etc' is not an image id"),
        (
            "clean",
            "landmark_id,images\n3,abcd abcd\n",
            "line 2: 'abcd' is listed twice (as image abcd, like 'abcd'); list",
        ),
        (
            "clean",
            "landmark_id,images\nx3,abcd\n",
            "line 2: landmark_id is 'x3', but must be a number",
        ),
        ("train", "id,url,landmark_id\nabcd,u,1\nab,u,1\n", "line 3: 'ab' is not an image id"),
        ("train", "id,url,landmark_id\nabcd,1\n", "line 2: 2 fields, the header has 3"),
        ("train", "id,landmark_id\nabcd,\xff1\n", "after line 0"),
        ("own", "path,landmark\n../x.jpg,a\n", "line 2: '../x.jpg' leads out of"),
        ("own", "path,landmark\nx.jpg,\n", "line 2: an empty landmark"),
        ("own", "path,landmark,split\nx.jpg,a,query\n", "it lists no photos to train on"),
        ("own", "path,label\na.jpg,x\nb/../a.jpg,x\n", "line 3: 'b/../a.jpg' cannot name a"),
        ("own", "path,place\nx.jpg,a\n", "line 1: no column 'landmark' or 'label', only path,pl"),
        (
            "own",
            "path,label\na/b.jpg,a\nc,a\na/b.png,a\n",
            "line 4: 'a/b.png' is listed twice (as image a/b, like 'a/b.jpg'); rename one",
        ),
        (
            "own",
            "path,label,split\nx,a,train\ny,a,Train\n",
            "line 3: split is 'Train', but",
        ),
        ("own", "path,label,split\nx,a,\ny,a,val\n", "line 3: split is 'val', but must be one of"),
        ("own", "path,label\nx.jpg, \n", "line 2: an empty landmark"),
    ],
)
def test_wrong_list_is_named(tmp_path, kind, text, message):
    path = tmp_path / "list.csv"
    path.write_bytes(text.encode("latin-1"))
    option = {"clean": "train_clean_csv", "train": "train_csv", "own": "labels_csv"}[kind]
    with pytest.raises(InputError) as error:
        build_records(
            RecordsConfig(**{option: str(path)}, images_dir="photos", output_dir=str(tmp_path))
        )
    assert message in str(error.value) and str(path) in str(error.value)
    assert [entry.name for entry in tmp_path.iterdir()] == ["list.csv"]


def test_what_is_passed_over_is_counted(tmp_path, caplog):
    caplog.set_level("INFO")
    text = "path,label,split\na,x ,train\nb, x,\nc,y,query\nd,y,index\ne,y, index\n"
    (tmp_path / "own.csv").write_text(text)
    photos, landmarks = read_photos(ListsConfig(labels_csv=str(tmp_path / "own.csv")))
    assert len(photos) == 2 and landmarks == ["x"]
    assert [message.split(": ")[1] for message in caplog.messages] == [
        "2 photos of split index are not trained on",
        "1 photos of split query are not trained on",
    ]
    caplog.clear()
    (tmp_path / "clean.csv").write_text("landmark_id,images\n1,abcd\n2,\n3, \n")
    lists = ListsConfig(train_clean_csv=str(tmp_path / "clean.csv"), images_dir="x")
    assert read_photos(lists)[1] == [1]
    (message,) = caplog.messages
    assert message.startswith("2 landmarks list no photo") and message.endswith("clean.csv, line 3")


def test_no_list(tmp_path):
    with pytest.raises(InputError, match=r"nowhere\.csv: no such file"):
        build_records(RecordsConfig(labels_csv="nowhere.csv", output_dir=str(tmp_path)))


def test_landmark_with_very_many_photos(tmp_path):
    """GLDv2's longest field is longer than the csv module takes by default."""
    names = " ".join(f"{number:016x}" for number in range(12_000))
    (tmp_path / "clean.csv").write_text(f"landmark_id,images\n5,{names}\n")
    photos, landmarks = read_photos(
        ListsConfig(train_clean_csv=str(tmp_path / "clean.csv"), images_dir="x")
    )
    assert len(photos) == 12_000 and landmarks == [5]
    assert photos[1] == shards.Photo("0000000000000001", "x/0/0/0/0000000000000001.jpg", 0)


def own(folder, text, **changes):
    (folder / "labels.csv").write_text(text)
    return read_photos(ListsConfig(labels_csv=str(folder / "labels.csv"), **changes))


@pytest.mark.parametrize("column", ["landmark", "label"])
def test_own_list(tmp_path, column):
    text = f"x,{column},path,split\n,b,é/2.jpeg,\n,a,./1.tar.png,train\n,c,3.jpg,query\n,b,0,\n"
    photos, landmarks = own(tmp_path, text)
    assert landmarks == ["a", "b"]
    assert list(photos) == [
        shards.Photo("1.tar", f"{tmp_path}/1.tar.png", 0),
        shards.Photo("0", f"{tmp_path}/0", 1),
        shards.Photo("é/2", f"{tmp_path}/é/2.jpeg", 1),
    ]


@pytest.mark.parametrize(
    "name", ["a/link.jpg", "link/x.jpg", "link/..", "/etc/x.jpg", "a/../../x.jpg"]
)
def test_no_photo_outside_of_its_folder(tmp_path, name):
    """Also when an earlier photo of the same folder lies inside."""
    root = tmp_path / "mine"
    (root / "a").mkdir(parents=True)
    (root / "a" / "link.jpg").symlink_to(tmp_path / "outside.jpg")
    (root / "a" / "fine.jpg").symlink_to(root / "b.jpg")
    (root / "link").symlink_to(tmp_path)
    text = "path,label\na/x.jpg,1\na/fine.jpg,1\n"
    assert len(own(root, text)[0]) == 2
    with pytest.raises(InputError, match=r"labels\.csv, line 4: .* leads out of .*mine"):
        own(root, f"{text}{name},1\n")


def test_landmark_goes_before_label(tmp_path):
    assert own(tmp_path, "path,label,landmark\na.jpg,x,y\n")[1] == ["y"]


def test_excluded_photos(tmp_path):
    (tmp_path / "clean.csv").write_text("landmark_id,images\n7,aaa1 aaa2\n5,bbb1\n9,ccc1\n")
    (tmp_path / "exclude.txt").write_text(
        "# RGLDv2\naaa2\n\n  bbb1 # why\nzzz\nzzz\nlonger-than-any\n"
    )
    settings = ListsConfig(
        train_clean_csv=str(tmp_path / "clean.csv"),
        images_dir="x",
        exclude=str(tmp_path / "exclude.txt"),
    )
    photos, landmarks = read_photos(settings)
    assert [(photo.id, photo.label) for photo in photos] == [("aaa1", 0), ("ccc1", 1)]
    assert landmarks == [7, 9]  # a landmark without photos has no label
    assert (photos.excluded, photos.excluded_not_listed) == (2, 2)
    (tmp_path / "exclude.txt").write_text("aaa1\naaa2\nbbb1\nccc1\n")
    with pytest.raises(InputError, match=r"exclude\.txt: it excludes all 4 photos of .*clean\.csv"):
        read_photos(settings)
    (tmp_path / "exclude.txt").unlink()
    with pytest.raises(InputError, match=r"exclude\.txt: no such file"):
        read_photos(settings)


def test_hash_tells_lists_apart(tmp_path):
    hashes = {
        own(tmp_path, f"path,label\n{rows}")[0].sha256()
        for rows in ("a.jpg,1\nb.jpg,1\n", "a.jpg,1\nb.jpg,2\n", "a.jpg,1\nb.png,1\n", "a.jpg,1\n")
    }
    assert len(hashes) == 4

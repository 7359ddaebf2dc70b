"""labels.csv becomes ground truths, or an error that names the line."""

import pickletools

import pytest
from PIL import ExifTags, Image

from dolg_tf.data.own_photos import GroundTruthsConfig, ground_truths, write_ground_truths
from dolg_tf.retrieval.extract.photos import PhotosConfig, list_photos
from dolg_tf.retrieval.ground_truth import load_ground_truth
from dolg_tf.stage.config import InputError

ROWS = [
    ("a/1.jpg", "arch", "train"),
    ("a/2.jpg", "arch", "index"),
    ("b/1.jpg", "bridge", "index"),
    ("a/3.jpg", "arch", "index"),
    ("a/4.jpg", "arch", "query"),
    ("b/2.jpg", "bridge", "query"),
]


def _folder(path, rows, header="path,landmark,split"):
    for i, row in enumerate(rows):
        if not row[0].startswith(".."):
            (path / row[0]).parent.mkdir(exist_ok=True)
            Image.new("RGB", (20 + i, 10)).save(path / row[0], "PNG")
    (path / "labels.csv").write_text("\n".join([header, *map(",".join, rows)]) + "\n")
    return path / "labels.csv"


def test_queries_find_the_index_photos_of_their_landmark(tmp_path):
    written = write_ground_truths(_folder(tmp_path, ROWS), tmp_path / "out")
    seen, unseen = (load_ground_truth(written[name]) for name in ("seen", "unseen"))
    assert seen.index_ids == unseen.index_ids == ("a/2", "b/1", "a/3")
    assert seen.query_ids == ("a/4",) and unseen.query_ids == ("b/2",)
    assert list(seen.queries[0].easy) == [0, 2] and list(unseen.queries[0].easy) == [1]
    assert tuple(seen.queries[0].box) == (0, 0, 24, 10)


def test_names_without_suffix_find_their_files(tmp_path):
    rows = [(name.removesuffix(".jpg"), *rest) for name, *rest in ROWS]
    labels = _folder(tmp_path, ROWS)
    expected = load_ground_truth(write_ground_truths(labels, tmp_path / "out")["seen"])
    labels.write_text("\n".join(["path,landmark,split", *map(",".join, rows)]) + "\n")
    seen = load_ground_truth(write_ground_truths(labels, tmp_path / "again")["seen"])
    assert (seen.query_ids, seen.index_ids) == (expected.query_ids, expected.index_ids)
    assert tuple(seen.queries[0].box) == (0, 0, 24, 10)


def test_many_queries_stay_within_what_a_reader_takes(tmp_path):
    rows = [*ROWS, *((f"a/q{i}.jpg", "arch", "query") for i in range(40))]
    labels = _folder(tmp_path, rows)
    for i in range(40):
        Image.new("RGB", (24, 10)).save(tmp_path / f"a/q{i}.jpg", "PNG")
    written = write_ground_truths(labels, tmp_path / "out")
    opcodes = len(list(pickletools.genops(written["seen"].read_bytes())))
    assert opcodes < 41 * 15 + 60
    assert len(load_ground_truth(written["seen"]).queries) == 41


def test_boxes_are_of_the_photo_as_it_is_turned_and_the_file_says_so(tmp_path):
    labels = _folder(tmp_path, ROWS)
    exif = Image.Exif()
    exif[ExifTags.Base.Orientation] = 6
    Image.new("RGB", (24, 10)).save(tmp_path / "a/4.jpg", exif=exif)
    seen = load_ground_truth(write_ground_truths(labels, tmp_path / "out")["seen"])
    assert seen.upright and tuple(seen.queries[0].box) == (0, 0, 10, 24)


def test_any_name_of_a_photo_is_found_again(tmp_path):
    """Two suffixes, none, a suffix that belongs to the id, and one that another photo needs too."""
    names = ["tower.jpg.jpg", "gate.png.jpg", "photo", "x.webp", "one.jpg"]
    labels = _folder(tmp_path, [(name, "arch", "index") for name in names[1:]])
    Image.new("RGB", (9, 9)).save(tmp_path / names[0], "PNG")
    with labels.open("a") as file:
        file.write(f"{names[0]},arch,query\n")
    Image.new("RGB", (9, 9)).save(tmp_path / "one.png")  # not in the list
    truth = write_ground_truths(labels, tmp_path / "out")["unseen"]
    for subset, expected in (("query", names[:1]), ("index", names[1:])):
        settings = PhotosConfig(
            images=str(truth), image_root=str(tmp_path), subset=subset, output="unused"
        )
        photos = list_photos(settings).photos
        assert [photo.path.name for photo in photos] == expected
        ids = load_ground_truth(truth).query_ids + load_ground_truth(truth).index_ids
        assert {photo.id for photo in photos} <= set(ids)


def test_photos_that_are_only_searched_need_no_training_photos(tmp_path):
    written = write_ground_truths(_folder(tmp_path, ROWS[1:]), tmp_path / "out")
    assert list(written) == ["unseen"]
    assert load_ground_truth(written["unseen"]).query_ids == ("a/4", "b/2")


def test_queries_without_index_photo_and_photos_of_train_are_counted(tmp_path, caplog):
    caplog.set_level("INFO")
    labels = _folder(tmp_path, [*ROWS, ("c/1.jpg", "castle", "query")])
    written = write_ground_truths(labels, tmp_path / "out")
    assert not len(load_ground_truth(written["unseen"]).queries[1].easy)
    assert "1 queries match no index photo and count nowhere, such as c/1.jpg of" in caplog.text
    assert "labels.csv: 1 photos of split train are not searched" in caplog.text


def test_blanks_do_not_make_another_landmark_and_equal_numbers_are_told(tmp_path, caplog):
    rows = [(path, f" {landmark} ", f"{split} ") for path, landmark, split in ROWS]
    rows += [("c/1.jpg", "1", "index"), ("c/2.jpg", "01", "index"), ("c/3.jpg", "1.0", "query")]
    rows += [("c/4.jpg", "2", "index"), ("c/5.jpg", "arch 2", "index")]
    written = write_ground_truths(_folder(tmp_path, rows), tmp_path / "out")
    assert load_ground_truth(written["seen"]).query_ids == ("a/4",)
    message, other = caplog.messages
    assert "labels.csv: '01', '1', '1.0' are one number" in message
    assert "1 queries match no index photo" in other


def test_without_unseen_landmarks_there_is_no_unseen_ground_truth(tmp_path):
    labels = _folder(tmp_path, [*ROWS, ("b/3.jpg", "bridge", "train")])
    assert list(write_ground_truths(labels, tmp_path / "out")) == ["seen"]


@pytest.mark.parametrize(
    ("rows", "message"),
    [
        ([*ROWS, ("b/3.jpg", "bridge", "val")], "line 8: split is 'val', but must be one of train"),
        ([*ROWS, ("b/3.jpg", "bridge", "Train")], "line 8: split is 'Train'"),
        (ROWS[:4], "no photo has split query"),
        ([ROWS[0], *ROWS[4:]], "no photo has split index"),
        ([*ROWS, ("../x.jpg", "arch", "train")], "line 8: '../x.jpg' leads out of"),
        ([*ROWS, ("a/4.jpg", "arch", "train")], "line 8: 'a/4.jpg' is listed twice"),
        (
            [*ROWS, ("a/4.png", "arch", "train")],
            "line 8: 'a/4.png' is listed twice .as a/4, like 'a/4.jpg'.; rename one",
        ),
        ([*ROWS, ("a/9.jpg", "", "train")], "line 8: an empty landmark"),
    ],
)
def test_what_is_wrong_is_named(tmp_path, rows, message):
    with pytest.raises(InputError, match=message):
        write_ground_truths(_folder(tmp_path, rows), tmp_path / "out")


def test_missing_file_column_and_photo_are_named(tmp_path):
    with pytest.raises(InputError, match="header path,landmark,split"):
        write_ground_truths(tmp_path / "labels.csv", tmp_path)
    labels = _folder(tmp_path, ROWS, header="path,place,split")
    with pytest.raises(InputError, match="line 1: no column 'landmark'"):
        write_ground_truths(labels, tmp_path)
    labels = _folder(tmp_path, ROWS)
    (tmp_path / "a/4.jpg").write_bytes(b"no photo")
    with pytest.raises(InputError, match=r"4\.jpg: this query photo cannot be read"):
        write_ground_truths(labels, tmp_path / "out")
    (tmp_path / "a/4.jpg").unlink()
    with pytest.raises(InputError, match=r"4\.jpg: this .* cannot be read \(No such file or dir"):
        write_ground_truths(labels, tmp_path / "out")


def test_the_command_writes_beside_the_list_unless_told(tmp_path):
    labels = _folder(tmp_path, ROWS)
    written = ground_truths(GroundTruthsConfig(labels_csv=str(labels)))
    assert {path.parent for path in written.values()} == {labels.parent}
    out = tmp_path / "out"
    ground_truths(GroundTruthsConfig(labels_csv=str(labels), output=str(out)))
    assert sorted(path.name for path in out.iterdir()) == sorted(p.name for p in written.values())

"""`dolg search`: what it describes, answers, keeps, refuses and forgets."""

import os
import shutil

import numpy as np
import pytest
from own_photos_world import draw, numbers
from PIL import Image

from dolg_tf.pipelines.own_photos import adapt, queries
from dolg_tf.pipelines.own_photos.config import SearchConfig
from dolg_tf.retrieval import descriptors
from dolg_tf.retrieval.index.directory import Index
from dolg_tf.stage import files, tables
from dolg_tf.stage.config import InputError


def _state(folder):
    return {path: (path.stat().st_mtime_ns, path.stat().st_size) for path in folder.rglob("*")}


def _set(world):
    return descriptors.read(next(world.kept.glob("model-*")) / "photos")


def _index(world):
    return Index.open(next(world.kept.glob("model-*")) / "searched" / "index")


def test_the_first_time_describes_all_and_answers(world, capsys):
    before = _state(world.folder)
    answers = world.search(k=5)
    assert sorted(world.network.described) == [0, *range(72)]  # the query, too
    assert [row[:2] for row in answers] == [["0.png", str(rank)] for rank in range(1, 6)]
    assert set(numbers(row[2] for row in answers)) == {1, 2, 3, 4, 5}  # its place, without itself
    assert answers[0][2].startswith("place_0/") and answers[0][2].endswith(".png")
    assert "place_0/" in capsys.readouterr().out
    assert _state(world.folder) == before


def test_the_set_and_the_index_lead_to_the_photos(world):
    world.search()
    found, index = _set(world), _index(world)
    for made in (found.meta, index.meta):
        assert made["format_version"] == 2 and made["image_roots"] == {"": str(world.folder)}
    assert found.ids == index.ids and "place_0/0.png" in found.ids
    assert index.threshold is not None and index.meta["calibration"]["estimated"]


def test_only_what_is_new_or_changed_is_described(world):
    world.search()
    world.search()
    assert world.network.described == [0]  # the query
    os.utime(world.folder / "place_0" / "1.png")
    (world.folder / "place_0" / "2.png").rename(world.folder / "2.png")
    shutil.copy(world.folder / "place_0" / "3.png", world.folder / "copy.png")
    draw(world.folder / "place_0" / "4.png", 72)
    draw(world.folder / "new.png", 71)
    (world.folder / "place_0" / "5.png").unlink()
    world.search()
    # new.png has the bytes of photo 71: it need not be described either.
    assert sorted(world.network.described) == [0, 72]
    ids = _set(world).ids
    assert {"2.png", "copy.png", "new.png"} <= set(ids) and len(ids) == 73
    assert not {"place_0/2.png", "place_0/5.png"} & set(ids)
    row = ids.index("place_0/4.png")
    assert (_set(world).descriptors[row : row + 1] == world.network.rows[72]).all()


def test_an_interrupted_one_continues(world, monkeypatch):
    world.network.fails_after = 64 + 3
    with pytest.raises(KeyboardInterrupt):
        world.search()
    assert not list(world.kept.glob("model-*/photos"))
    world.network.fails_after = None
    world.search()
    assert len(world.network.described) == 72 - 64 + 1
    assert len(_set(world)) == 72


def test_what_a_killed_one_wrote_halfway_does_not_count(world):
    world.network.fails_after = 64 + 3
    with pytest.raises(KeyboardInterrupt):
        world.search()
    begun = next(world.kept.glob("model-*/begun"))
    lines = (begun / "photos.jsonl").read_bytes()
    (begun / "photos.jsonl").write_bytes(lines[: len(lines) // 2])
    world.network.fails_after = None
    world.search()
    complete = lines[: len(lines) // 2].count(b"\n")
    assert len(world.network.described) == 72 - complete + 1
    found = _set(world)
    assert (found.descriptors[:] == world.network.rows[numbers(found.ids)]).all()


@pytest.mark.parametrize("when", ["before", "after"])  # the new set is there
def test_photos_that_exchanged_names_keep_their_descriptors_in_a_killed_one(
    world, monkeypatch, when
):
    world.search()
    first, second = (world.folder / "place_0" / name for name in ("1.png", "2.png"))
    first.rename(world.folder / "x.png")
    second.rename(first)
    (world.folder / "x.png").rename(second)

    def killed(*arguments):
        raise KeyboardInterrupt

    with monkeypatch.context() as patch, pytest.raises(KeyboardInterrupt):
        if when == "after":
            write = descriptors.write
            patch.setattr(descriptors, "write", lambda *some: killed(write(*some)))
        else:
            patch.setattr(descriptors, "write", killed)
        world.search()
    world.search()
    found, numbers_now = _set(world), numbers(_set(world).ids)
    for id_, number in (("place_0/1.png", 2), ("place_0/2.png", 1)):
        numbers_now[found.ids.index(id_)] = number
    assert (found.descriptors[:] == world.network.rows[numbers_now]).all()
    assert world.network.described == [0]


def test_lines_whose_rows_were_lost_do_not_count(world):
    world.network.fails_after = 64 + 3
    with pytest.raises(KeyboardInterrupt):
        world.search()
    rows = next(world.kept.glob("model-*/begun/rows.f32"))
    os.truncate(rows, rows.stat().st_size // 64 * 10 + 3)  # ten and a bit
    world.network.fails_after = None
    world.search()
    assert len(world.network.described) == 72 - 10 + 1
    found = _set(world)
    assert (found.descriptors[:] == world.network.rows[numbers(found.ids)]).all()


def test_unreadable_photos_are_listed_and_stop_nothing(world, caplog):
    (world.folder / "broken.jpg").write_bytes(b"no photo")
    shutil.copy(world.folder / "place_0" / "0.png", world.folder / "line\nbreak.png")
    (world.folder / "lost.jpg").symlink_to(world.folder / "nowhere")
    (world.folder / "place_0" / "circle").symlink_to("circle")
    answers = world.search()
    assert answers
    table = tables.read_table(world.kept / "unreadable.csv", ["path"], ["reason"])
    rows = [row for _, row in table]
    names = [path.rpartition("/")[2] for path, _ in rows]
    assert names == ["broken.jpg", "line\nbreak.png", "lost.jpg"]
    assert "not a picture" in rows[0][1] and "rename it" in rows[1][1] and "No such" in rows[2][1]
    assert "could not be read: 3" in caplog.text
    world.search()  # the copy's bytes are known, and yet its name fits into no table
    assert len(_set(world)) == 72


def test_photos_of_a_phone_are_turned_and_keep_their_suffixes(world):
    heif = pytest.importorskip("pillow_heif")
    image, turned = Image.new("RGB", (24, 16), (10, 0, 3)), Image.Exif()
    turned[274] = 6  # a quarter
    image.save(world.folder / "IMG_1.JPG", "JPEG", exif=turned)
    heif.from_pillow(image).save(world.folder / "IMG_1.HEIC")
    shapes, describe = [], world.network.describe

    def described(images, scales=()):
        shapes.extend([images.shape[1:3]] * len(images))
        return describe(images)

    world.network.describe = described
    answers = world.search(query=world.folder / "IMG_1.JPG", k=100)
    assert {"IMG_1.JPG", "IMG_1.HEIC"} <= set(_set(world).ids)
    assert shapes.count((24, 16)) == 2 and shapes.count((16, 24)) == 73  # the query is turned, too
    ids = [row[2] for row in answers]
    assert "IMG_1.HEIC" in ids and "IMG_1.JPG" not in ids


def test_a_photo_without_a_sound_descriptor_stops_nothing(world):
    rows = world.network.rows.copy()
    world.network.rows[7], world.network.rows[20] = 0, np.nan
    world.search()
    assert len(_set(world)) == 70
    unread = [row for _, row in tables.read_table(world.kept / "unreadable.csv", ["reason"])]
    assert len(unread) == 2 and all("unit length" in reason for (reason,) in unread)
    with pytest.raises(InputError, match=r"none of 1 can be read; .*unit length"):
        world.search(query=world.folder / "place_1" / "7.png")
    world.network.rows = rows


def test_what_was_too_large_for_the_memory_is_tried_again(world):
    describe, full = world.network.describe, True

    def described(images, scales=()):
        if full and any(int(image[0, 0, 0]) == 7 for image in images):
            raise MemoryError
        return describe(images, scales)

    world.network.describe = described
    world.search()
    assert "too large" in (world.kept / "unreadable.csv").read_text()
    full = False
    world.search()
    assert sorted(world.network.described) == [0, 7] and len(_set(world)) == 72


def test_every_photo_can_be_asked_for_and_a_copy_is_not_an_answer(world, tmp_path):
    copy = tmp_path / "asked.png"
    shutil.copy(world.folder / "place_0" / "0.png", copy)
    answers = world.search(query=copy, k=1000)
    assert len(answers) == 71 and "place_0/0.png" not in [row[2] for row in answers]
    assert [int(row[1]) for row in answers] == list(range(1, 72))


def test_queries_of_a_folder_and_a_csv(world, tmp_path):
    draw(tmp_path / "asked" / "one.png", 10)
    draw(tmp_path / "asked" / "deep" / "two.png", 20)
    (tmp_path / "asked" / "list.csv").write_text("path\ndeep/two.png\none.png\n")
    names = [row[0] for row in world.search(query=tmp_path / "asked", k=1)]
    assert names == ["one.png", "deep/two.png"]
    names = [row[0] for row in world.search(query=tmp_path / "asked" / "list.csv", k=1)]
    assert names == ["deep/two.png", "one.png"]
    output = tmp_path / "mine.csv"
    world.search(query=tmp_path / "asked" / "one.png", k=2, output=str(output))
    assert len(list(tables.read_table(output, ["match"]))) == 2


def test_queries_that_cannot_be_read_or_named_stop_no_other(world, tmp_path, caplog, monkeypatch):
    asked, scan = tmp_path / "asked", os.scandir

    def scandir(path):
        if str(path).endswith("/closed"):
            raise PermissionError(13, "Permission denied", path)
        return scan(path)

    monkeypatch.setattr(os, "scandir", scandir)
    (asked / "closed").mkdir(parents=True)
    for name in ("a.png", "line\nbreak.png", "\udcff.png"):
        draw(asked / name, 10)
    (asked / "broken.jpg").write_bytes(b"no photo")
    assert [row[0] for row in world.search(query=asked, k=1)] == ["a.png"]
    told = [line for line in caplog.text.splitlines() if "unreadable" in line]
    assert len(told) == 4 and "closed: Permission denied" in told[0]
    assert "UTF-8" in caplog.text and "not a picture" in caplog.text


def test_answers_replace_answers_alone(world, tmp_path):
    world.search()
    draw(tmp_path / "one.png", 10)
    listed = tmp_path / "list.csv"
    listed.write_text("path\none.png\n")
    with pytest.raises(InputError, match="not replaced, since it holds no answers"):
        world.search(query=listed, output=str(listed))
    with pytest.raises(InputError, match="is a directory"):
        (tmp_path / "folder.csv").mkdir()
        world.search(query=listed, output=str(tmp_path / "folder.csv"))
    assert world.network.described == [] and listed.read_text() == "path\none.png\n"
    for k in (1, 2):
        world.search(query=listed, k=k, output=str(tmp_path / "mine.csv"))
    assert len(list(tables.read_table(tmp_path / "mine.csv", ["rank"]))) == 2
    with pytest.raises(InputError, match="answers to what"):
        SearchConfig(photos=("photos",), output="mine.csv")


def test_many_answers_are_found_in_parts(world, monkeypatch):
    draw(world.folder.parent / "asked" / "one.png", 10)
    draw(world.folder.parent / "asked" / "two.png", 20)
    whole = world.search(query=world.folder.parent / "asked", k=50)
    monkeypatch.setattr(queries, "_PAIRS", 60)
    monkeypatch.setattr(queries, "_ROWS", 7)
    assert whole == world.search(query=world.folder.parent / "asked", k=50) and len(whole) == 100


def test_a_query_that_is_no_photo_is_told_before_the_photos_are_described(world):
    with pytest.raises(InputError, match=r"none of 1 can be read; .*test_command.py"):
        world.search(query=__file__)
    assert world.network.described == []


def test_several_folders_have_labels(world, tmp_path):
    draw(tmp_path / "other" / "photos" / "x.png", 3)
    answers = world.search(world.folder, tmp_path / "other" / "photos")
    assert {row[2].partition("/")[0] for row in answers} <= {"photos", "photos_2"}
    roots = _set(world).meta["image_roots"]
    assert set(roots.values()) == {str(world.folder), str(tmp_path / "other" / "photos")}
    label = next(name for name, root in roots.items() if root.endswith("other/photos"))
    assert f"{label}/x.png" in _set(world).ids
    with pytest.raises(InputError, match="is inside"):
        world.search(world.folder, world.folder / "place_0")


def test_kept_folders_are_not_searched(world):
    for name in ("kept", "another"):
        world.kept = world.folder / name
        world.search()
        draw(world.kept / "inside.png", 5)
    world.search()
    assert len(_set(world)) == 72


def test_two_at_once_are_refused(world):
    world.search()
    with (
        files.lock(world.kept / "lock", "taken"),
        pytest.raises(InputError, match="another `dolg search` is at work"),
    ):
        world.search()


def test_forgetting_deletes_the_kept_folder_alone(world, tmp_path, caplog):
    world.search()
    before = _state(world.folder)
    world.kept.rename(tmp_path / "moved")
    world.kept.symlink_to(tmp_path / "moved")
    with pytest.raises(InputError, match="is a link"):
        world.search(forget=True)
    world.kept.unlink()
    (tmp_path / "moved").rename(world.kept)
    with pytest.raises(InputError, match="no such file"):
        world.search(forget=True)  # found.csv is gone with it
    assert not world.kept.exists() and _state(world.folder) == before


@pytest.mark.parametrize("name", ["photos", "work"])
def test_a_folder_of_something_else_is_neither_used_nor_deleted(world, tmp_path, name):
    (tmp_path / "work").mkdir()
    (tmp_path / "work" / "thesis.txt").write_text("all of it")
    world.kept = tmp_path / name
    before = _state(tmp_path)
    for forget in (False, True):
        with pytest.raises(InputError, match=r"holds other files|is the folder of photos"):
            world.search(forget=forget)
    assert _state(tmp_path) == before


def test_photos_that_are_all_gone_are_not_forgotten(world):
    world.search()
    shutil.rmtree(world.folder)
    world.folder.mkdir()
    with pytest.raises(InputError, match="no photos there"):
        world.search(query=__file__)
    assert len(_set(world)) == 72


def test_of_several_folders_none_may_be_without_photos(world, tmp_path):
    other = draw(tmp_path / "other" / "x.png", 3).parent
    world.search(world.folder, other)
    (other / "x.png").unlink()
    with pytest.raises(InputError, match=r"other: no photos there"):
        world.search(world.folder, other)
    assert len(_set(world)) == 73


def test_what_a_command_killed_at_once_left_is_no_other_file(world):
    world.kept.mkdir()
    (world.kept / "lock").touch()
    (world.kept / ".dolg_search.json.dolg-0").mkdir()
    world.search()
    (world.kept / "dolg_search.json").write_text("{")
    for forget in (False, True):
        with pytest.raises(InputError, match=r"not JSON .*; or delete .*kept"):
            world.search(forget=forget)


def test_what_was_learned_stays_until_a_tenth_has_changed(world):
    world.search()
    first = _index(world).meta["whitening"]
    assert first is not None
    draw(world.folder / "new.png", 72)
    world.search()
    assert _index(world).meta["whitening"] == first and len(_index(world)) == 73
    for number in range(8):
        (world.folder / f"place_{number}" / f"{6 * number}.png").unlink()
    world.search(query=world.folder / "place_0" / "1.png")
    assert _index(world).meta["whitening"] != first


def test_places_follow_what_photos_show_not_their_names(world, caplog):
    places = [world.folder / f"place_{number}" for number in range(12)]
    (places[2] / "17.png").unlink()
    world.search()
    draw(world.folder / "new.png", 17)
    (places[0] / "0.png").rename(world.folder / "0.png")  # two are exchanged
    (places[1] / "6.png").rename(places[0] / "0.png")
    (world.folder / "0.png").rename(places[1] / "6.png")
    draw(places[0] / "1.png", 12)  # another photo under an old name
    for number in range(31, 36):
        (places[5] / f"{number}.png").unlink()
    caplog.clear()
    with caplog.at_level("INFO"):
        world.search(query=places[2] / "13.png")
    # Said each time.
    assert "The search is adapted to your photos" in caplog.text
    assert "pairs of 12 groups, which is little; 100% of them are right" in caplog.text
    found = adapt.read(next(world.kept.glob("model-*/searched")))
    label = dict(zip(found.index.ids, found.labels.tolist(), strict=True))
    assert label["place_0/0.png"] == label["place_1/7.png"] != label["place_0/2.png"]
    assert label["place_1/6.png"] == label["place_0/2.png"]
    assert label["place_0/1.png"] == label["new.png"] == label["place_2/13.png"]
    assert label["place_5/30.png"] == -1
    assert sorted(map(len, found.searchable.places)) == [5, *[6] * 9, 7]


def test_nothing_is_learned_where_the_photos_form_no_places(world, caplog):
    for place in range(3, 12):
        shutil.rmtree(world.folder / f"place_{place}")
    for path in list(world.folder.rglob("*.png")):
        if int(path.stem) % 6:
            path.unlink()
    with caplog.at_level("INFO"):
        answers = world.search(k=1)
    assert "as they are" in caplog.text and len(answers) == 1
    assert _index(world).meta["whitening"] is None and _index(world).threshold is None

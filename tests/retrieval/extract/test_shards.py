"""A set grows by shards, is interrupted, goes on, and is shared; by a describer without network."""

import errno
import json
import subprocess
import sys
import threading
from unittest import mock

import numpy as np
import pytest
from PIL import Image

from dolg_tf.retrieval import descriptors
from dolg_tf.retrieval.extract import shards as unfinished
from dolg_tf.retrieval.extract.model import Describer
from dolg_tf.retrieval.extract.photos import PhotosConfig
from dolg_tf.retrieval.extract.stage import describe_photos
from dolg_tf.stage import files
from dolg_tf.stage.config import InputError

PHOTOS, SHARD = 10, 3


@pytest.fixture(autouse=True)
def _small_shards(monkeypatch):
    monkeypatch.setattr(unfinished, "SHARD_PHOTOS", SHARD)
    monkeypatch.setattr(unfinished, "_FILE_SHARDS", 2)


@pytest.fixture
def photos(tmp_path):
    folder = tmp_path / "photos"
    folder.mkdir()
    for number in range(PHOTOS):
        shape = (4 + number % 3, 5, 3)
        image = np.random.default_rng(number).integers(0, 256, shape, dtype=np.uint8)
        Image.fromarray(image).save(folder / f"{number}.png")
    return folder


def _colours(batch):
    means = batch.mean(axis=(1, 2), dtype=np.float64)
    return (means / np.linalg.norm(means, axis=1, keepdims=True)).astype(np.float32)


class _Counting:
    """Describes by mean colours, and raises `error` when more than `most` photos come."""

    def __init__(self, most=1000, error=KeyboardInterrupt):
        self.seen, self._most, self._error = 0, most, error

    def __call__(self, batch):
        if self.seen + len(batch) > self._most:
            raise self._error
        self.seen += len(batch)
        return _colours(batch)


def _run(photos, output, describe=_colours, dtype="float32", part=(0, 1), model="m", **options):
    settings = PhotosConfig(images=str(photos), output=str(output), **options)
    return describe_photos(settings, Describer(model, (1.0,), None, lambda: describe), dtype, part)


def _names(folder):
    return sorted(path.name for path in folder.iterdir())


def _begin(photos, output, most=8):
    """Leaves an unfinished set."""
    with pytest.raises(KeyboardInterrupt):
        _run(photos, output, _Counting(most), batch_size=1)


@pytest.fixture
def expected(photos, tmp_path, monkeypatch):
    with monkeypatch.context() as patch:
        patch.setattr(unfinished, "SHARD_PHOTOS", 1000)
        return _run(photos, tmp_path / "expected")


def _same(found, expected):
    assert found.ids == expected.ids
    np.testing.assert_array_equal(found.descriptors, expected.descriptors)
    assert found.meta == expected.meta


def test_a_finished_set_holds_nothing_else(photos, tmp_path, expected):
    _same(_run(photos, tmp_path / "set"), expected)
    shards = [f"descriptors-0000{i}-of-00002.npy" for i in range(2)]
    assert _names(tmp_path / "set") == [*shards, "ids.txt", "meta.json"]
    rows = [np.load(tmp_path / "set" / name) for name in shards]
    assert [len(some) for some in rows] == [2 * SHARD, PHOTOS - 2 * SHARD]
    # What joins them writes the file that NumPy would.
    np.save(tmp_path / "by_numpy.npy", rows[0])
    assert (tmp_path / "set" / shards[0]).read_bytes() == (tmp_path / "by_numpy.npy").read_bytes()


def test_a_kill_while_shards_are_joined_loses_none(photos, tmp_path, expected, monkeypatch):
    with monkeypatch.context() as patch:
        patch.setattr(descriptors, "write_about", mock.Mock(side_effect=KeyboardInterrupt))
        with pytest.raises(KeyboardInterrupt):
            _run(photos, tmp_path / "set")
    (tmp_path / "set/descriptors-00000-of-00002.npy").write_bytes(b"half")
    (tmp_path / "set/descriptors-00007-of-00008.npy").touch()  # of a list that was longer
    with pytest.raises(InputError, match="unfinished: 4 of 4"):
        descriptors.read(tmp_path / "set")
    _same(_run(photos, tmp_path / "set", None), expected)


_MANY_SHARDS = """
import pathlib, resource, sys
import numpy as np
from dolg_tf.retrieval import descriptors
from dolg_tf.retrieval.extract import shards as unfinished
from dolg_tf.retrieval.extract.photos import Listing, Photo
unfinished.SHARD_PHOTOS = 1
resource.setrlimit(resource.RLIMIT_NOFILE, (40, 40))
photos = tuple(Photo(str(number), "") for number in range(300))
listing = Listing(pathlib.Path("photos"), photos, False)
keys = ("model_hash", "scales", "crop", "max_side", "whitening")
work = unfinished.UnfinishedSet(
    sys.argv[1],
    dict.fromkeys(keys) | {"dtype": "float16"},
    listing,
    listing.fingerprints(np.zeros(300, int), 1),
)
for shard in range(300):
    work.write(shard, np.float32([[np.cos(shard / 300), np.sin(shard / 300)]]), [])
assert work.finish(0)
found = descriptors.read(sys.argv[1])
np.testing.assert_array_equal(found.descriptors[:][:, 0], np.float16(np.cos(np.arange(300) / 300)))
assert found.meta["image_root"] == str(pathlib.Path("photos").resolve())
"""


def test_a_set_of_more_shards_than_files_may_be_open(tmp_path):
    """With real sizes: 256 shards are joined to a file."""
    command = [sys.executable, "-c", _MANY_SHARDS, str(tmp_path / "set")]
    found = subprocess.run(command, capture_output=True, text=True, check=False)
    assert found.returncode == 0, found.stderr
    assert len(list((tmp_path / "set").glob("*.npy"))) == 2


def test_an_interrupted_run_goes_on(photos, tmp_path, expected, caplog):
    caplog.set_level("INFO")
    _begin(photos, tmp_path / "set")
    assert "2 of 4 shards are done; run the same command again" in caplog.text
    with pytest.raises(InputError, match=r"set is unfinished: 2 of 4 shards; run the same"):
        descriptors.read(tmp_path / "set")
    rest = _Counting()
    _same(_run(photos, tmp_path / "set", rest, batch_size=2), expected)
    assert rest.seen == PHOTOS - 2 * SHARD


def test_nothing_is_left_of_a_run_without_a_shard(photos, tmp_path):
    _begin(photos, tmp_path / "set", most=2)
    assert _names(tmp_path) == ["photos"]


def test_going_on_with_another_setting_is_refused(photos, tmp_path):
    output = tmp_path / "set"
    _begin(photos, output)
    for options, told in [
        ({"model": "other"}, "begun with model_hash='m', not 'other'; delete it or"),
        ({"dtype": "float16"}, "begun with dtype='float32', not 'float16'"),
        ({"max_side": 3}, "with max_side=1024, not 3; .* or give --max_side=1024"),
        ({"upright": False}, "with upright=True, not False; .* or give --upright$"),
    ]:
        with pytest.raises(InputError, match=told):
            _run(photos, output, **options)
    (photos / "9.png").rename(photos / "99.png")
    with pytest.raises(InputError, match="begun of other photos"):
        _run(photos, output)
    (photos / "99.png").unlink()
    with pytest.raises(InputError, match="begun of other photos"):
        _run(photos, output)


def _truncate(path):
    path.write_bytes(path.read_bytes()[:-5])


HARM = {
    "half a shard": lambda f: _truncate(f / "unfinished/descriptors-00000-of-00004.npy"),
    "empty shard": lambda f: (f / "unfinished/descriptors-00000-of-00004.npy").write_bytes(b""),
    "no shard": lambda f: (f / "unfinished/descriptors-00000-of-00004.npy").unlink(),
    "another's": lambda f: np.save(
        f / "unfinished/descriptors-00000-of-00004.npy", np.zeros((3, 2))
    ),
    "another dtype": lambda f: np.save(
        f / "unfinished/descriptors-00000-of-00004.npy", np.zeros((3, 3), np.float16)
    ),
    "half a note": lambda f: _truncate(f / "unfinished/shard-00000-of-00004.json"),
    "odd note": lambda f: (f / "unfinished/shard-00000-of-00004.json").write_text(
        '{"format_version": 1, "shard": {}, "set": {}}'
    ),
}


@pytest.mark.parametrize("harm", HARM)
def test_a_damaged_shard_is_done_again(photos, tmp_path, expected, harm, caplog):
    _begin(photos, tmp_path / "set")
    HARM[harm](tmp_path / "set")
    rest = _Counting()
    _same(_run(photos, tmp_path / "set", rest), expected)
    assert rest.seen == PHOTOS - SHARD
    assert "done again" in caplog.text


def test_a_shard_whose_photos_have_changed_is_done_again(photos, tmp_path, caplog):
    _begin(photos, tmp_path / "set")
    Image.fromarray(np.full((9, 9, 3), 77, np.uint8)).save(photos / "4.png")
    rest = _Counting()
    found = _run(photos, tmp_path / "set", rest)
    assert rest.seen == PHOTOS - SHARD
    assert "shard 1 of 4 is done again: its photos have changed" in caplog.text
    np.testing.assert_allclose(found.descriptors[4:5], [[3**-0.5] * 3], rtol=1e-6)


@pytest.mark.parametrize("order", [(0, 1, 2), (2, 0, 1)])
def test_parts_make_the_same_set(photos, tmp_path, expected, order, caplog):
    caplog.set_level("INFO")
    for part in order[:-1]:
        assert _run(photos, tmp_path / "set", part=(part, 3)) is None
    assert f"part {order[0]}/3 is done" in caplog.text
    counting = _Counting()
    _same(_run(photos, tmp_path / "set", counting, part=(order[-1], 3)), expected)
    assert counting.seen == len([row for row in range(PHOTOS) if row // SHARD % 3 == order[-1]])


def test_a_part_without_shards(photos, tmp_path, expected):
    assert _run(photos, tmp_path / "set", None, part=(5, 6)) is None
    _same(_run(photos, tmp_path / "set"), expected)


def test_two_at_the_same_part(photos, tmp_path):
    told = []

    def describe(batch):
        if not told:
            told.append("")  # before the second run, which must not come here
            with pytest.raises(InputError, match=r"working on --shard=0/1 of .*set; wait for it"):
                _run(photos, tmp_path / "set", None)
            told[0] = "refused"
        return _colours(batch)

    assert len(_run(photos, tmp_path / "set", describe)) == PHOTOS
    assert told == ["refused"]


def test_who_finishes_waits_for_who_is_finishing(photos, tmp_path, expected):
    """Both parts are done while a third process holds the lock."""
    lock = files.lock(tmp_path / "set/unfinished/finish.lock", "")
    found = []
    runs = [
        threading.Thread(
            target=lambda part=part: found.append(_run(photos, tmp_path / "set", part=(part, 2)))
        )
        for part in range(2)
    ]
    for run in runs:
        run.start()
    for run in runs:
        run.join(0.5)
        assert run.is_alive()
    lock.close()
    for run in runs:
        run.join(10)
    assert len(found) == 2
    for one in found:
        _same(one, expected)


def test_leftovers_of_a_finished_set_go(photos, tmp_path, expected):
    (tmp_path / "expected/unfinished").mkdir()
    (tmp_path / "expected/unfinished/finish.lock").touch()
    _run(photos, tmp_path / "expected", None)
    assert "unfinished" not in _names(tmp_path / "expected")


def test_a_full_disk(photos, tmp_path, expected, monkeypatch):
    save = np.save

    def full(path, rows):
        if "00002" in path.name:
            path.write_bytes(b"half")
            raise OSError(errno.ENOSPC, "No space left on device")
        save(path, rows)

    with monkeypatch.context() as patch:
        patch.setattr(np, "save", full)
        with pytest.raises(InputError, match=r"00002-of-00004.npy cannot be written \(No space"):
            _run(photos, tmp_path / "set")
    assert _names(tmp_path / "set") == ["unfinished"]
    rest = _Counting()
    _same(_run(photos, tmp_path / "set", rest), expected)
    assert rest.seen == PHOTOS - 2 * SHARD


def test_a_network_that_gives_nan(photos, tmp_path):
    with pytest.raises(InputError, match=r"shard 0 of 4: row 0 is not finite"):
        _run(photos, tmp_path / "set", lambda batch: np.full((len(batch), 3), np.nan))


def test_bad_photos_are_counted_over_shards(photos, tmp_path):
    for number in (0, 1, 2, 5):  # the whole first shard
        (photos / f"{number}.png").write_bytes(b"no photo")
    with pytest.raises(InputError, match=r"4 unreadable photos, but --max_bad=3; .*5\.png"):
        _run(photos, tmp_path / "set", max_bad=3)
    with pytest.raises(InputError, match="unfinished: 1 of 4"):
        descriptors.read(tmp_path / "set")
    # One is mended, which changes its shard alone.
    Image.fromarray(np.full((9, 9, 3), 77, np.uint8)).save(photos / "5.png")
    found = _run(photos, tmp_path / "set", max_bad=3)
    assert found.ids == tuple("3456789")
    assert [bad["id"] for bad in found.meta["bad"]] == list("012")
    np.testing.assert_array_equal(
        found.descriptors[:1], _colours(np.array(Image.open(photos / "3.png"))[None])
    )


def test_too_many_bad_photos_of_all_parts(photos, tmp_path):
    for number in (0, 3):
        (photos / f"{number}.png").write_bytes(b"no photo")
    assert _run(photos, tmp_path / "set", part=(0, 2), max_bad=1) is None
    # Its own bad photo and the other part's.
    with pytest.raises(InputError, match="2 unreadable photos, but --max_bad=1"):
        _run(photos, tmp_path / "set", part=(1, 2), max_bad=1)
    assert len(_run(photos, tmp_path / "set", part=(1, 2), max_bad=2)) == PHOTOS - 2


def test_too_many_bad_photos_of_an_earlier_run(photos, tmp_path):
    (photos / "0.png").write_bytes(b"no photo")
    with pytest.raises(KeyboardInterrupt):
        _run(photos, tmp_path / "set", _Counting(6), max_bad=1)
    counting = _Counting()
    with pytest.raises(InputError, match="1 unreadable photos, but --max_bad=0"):
        _run(photos, tmp_path / "set", counting)
    assert counting.seen == 0


def test_not_one_photo(photos, tmp_path):
    for photo in photos.iterdir():
        photo.write_bytes(b"no photo")
    with pytest.raises(InputError, match="none of the photos could be read"):
        _run(photos, tmp_path / "set", None, max_bad=PHOTOS)


def test_half_floats(photos, tmp_path, expected):
    found = _run(photos, tmp_path / "set", dtype="float16")
    assert found.meta["dtype"] == "float16"
    stored = np.load(tmp_path / "set/descriptors-00000-of-00002.npy")
    assert stored.dtype == np.float16 and found.descriptors[:].dtype == np.float32
    np.testing.assert_allclose(found.descriptors[:], expected.descriptors[:], atol=5e-4)
    with pytest.raises(InputError, match="made with dtype='float16', not 'float32'"):
        _run(photos, tmp_path / "set")


def test_a_note_tells_the_whole_setting(photos, tmp_path):
    _begin(photos, tmp_path / "set")
    note = json.loads((tmp_path / "set/unfinished/shard-00001-of-00004.json").read_text())
    assert note["set"]["model_hash"] == "m" and note["set"]["shards"] == 4
    assert (note["shard"]["number"], note["shard"]["rows"], note["shard"]["bad"]) == (1, 3, [])

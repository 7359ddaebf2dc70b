"""The directory of an exact index: what faiss reads, and what is refused."""

import subprocess
import sys

import faiss
import numpy as np
import pytest
import sealed

from dolg_tf.retrieval.index import directory
from dolg_tf.retrieval.index.directory import Index
from dolg_tf.stage.config import InputError

META = {
    "kind": "flat",
    "width": 24,
    "image_root": "photos",
    "model_hash": "old",
    "scales": [0.5, 1.0],
    "crop": False,
    "max_side": 0,
    "whitening": None,
    "ivfpq": None,
    "calibration": None,
}
IDS = tuple(f"é/{row:03d}" for row in range(60))
ROWS = np.random.default_rng(2).standard_normal((60, 24)).astype(np.float32)


def _write(path, rows=ROWS, **meta):
    directory.write(path, IDS, META | meta, lambda file: directory.write_flat(rows, file))
    return path


@pytest.fixture
def folder(tmp_path):
    return _write(tmp_path / "index")


# --- what is there -------------------------------------------------------------------


@pytest.mark.parametrize("block", [7, 60, 16384])
def test_faiss_reads_it_and_answers_the_same(tmp_path, monkeypatch, block):
    monkeypatch.setattr(directory, "_BLOCK", block)
    file = _write(tmp_path / "index") / "index.faiss"
    read = faiss.read_index(str(file))
    assert isinstance(read, faiss.IndexFlatIP) and (read.ntotal, read.d) == (60, 24)
    scores, ranks = read.search(ROWS[:20], 20)
    ours = Index.open(tmp_path / "index").search(ROWS[:20], 20)
    np.testing.assert_array_equal(ours[1], ranks)
    np.testing.assert_allclose(ours[0], scores, atol=1e-5)
    faiss.write_index(read, str(tmp_path / "again.faiss"))
    assert (tmp_path / "again.faiss").read_bytes() == file.read_bytes()


def test_rows_stay_on_disk_and_are_read_aligned(folder):
    """NumPy multiplies what stands at odd addresses ten times as slowly."""
    rows = Index.open(folder).descriptors
    (folder / "index.faiss").unlink()
    for key in (slice(3, 40), np.array([5, 3, 59])):
        block = rows[key]
        np.testing.assert_array_equal(block, ROWS[key])
        assert block.flags.aligned and block.dtype == np.float32


def test_a_score_just_below_the_threshold_is_no_match(folder):
    """In float32 the two are equal."""
    directory.set_calibration(folder, {"threshold": 3 + 1e-9}, META)
    found, above = Index.open(folder), np.nextafter(np.float32(3), np.float32(4))
    assert found.threshold == 3 + 1e-9
    assert found.matches(np.array([3, above], np.float32)).tolist() == [False, True]


# --- damage --------------------------------------------------------------------------


def _cut(file, keep):
    file.write_bytes(file.read_bytes()[:keep])


def _flip(file, place):
    data = bytearray(file.read_bytes())
    data[place] ^= 1
    file.write_bytes(data)


DAMAGE = {
    "no index.faiss": ("index.faiss", lambda f: f.unlink(), "index.faiss: no such file"),
    "cut index.faiss": ("index.faiss", lambda f: _cut(f, -1), "not an IndexFlatIP of 60 x 24"),
    "empty index.faiss": ("index.faiss", lambda f: _cut(f, 0), "not an IndexFlatIP"),
    "more in index.faiss": (
        "index.faiss",
        lambda f: f.write_bytes(f.read_bytes() + b"x"),
        "not an IndexFlatIP",
    ),
    "other metric": ("index.faiss", lambda f: _flip(f, 33), "not an IndexFlatIP"),
    "no ids.txt": ("ids.txt", lambda f: f.unlink(), "ids.txt: no such file"),
    "cut last id": ("ids.txt", lambda f: _cut(f, -2), "ids.txt: damaged, its checksum"),
    "other letter": ("ids.txt", lambda f: _flip(f, 3), "ids.txt: damaged, its checksum"),
    "no meta.json": (
        "meta.json",
        lambda f: f.unlink(),
        "no index; `dolg index build`",
    ),
    "cut meta.json": ("meta.json", lambda f: _cut(f, 99), "not JSON"),
    "other letter in meta.json": (
        "meta.json",
        lambda f: f.write_text(f.read_text(encoding="utf-8").replace("crop", "crap")),
        "meta.json: damaged, or edited",
    ),
    "a list": ("meta.json", lambda f: f.write_text("[1]"), "format_version is None"),
    "later release": (
        "meta.json",
        lambda f: sealed.change(f, format_version=4),
        "format_version is 4",
    ),
    "no key": (
        "meta.json",
        lambda f: sealed.change(f, "scales"),
        "no 'scales'; build the index again",
    ),
    "other size": (
        "meta.json",
        lambda f: sealed.change(f, rows=59),
        "not an IndexFlatIP of 59 x 24",
    ),
}
DAMAGE["a number beyond all files"] = (
    "meta.json",
    lambda f: sealed.change(f, rows=2**63),
    f"not an IndexFlatIP of {2**63} x 24",
)
GEOMETRIC = {"rerank": "geometric", "order": "sum", "weight": 0.1, "cap": 100, "verify": 9}
GEOMETRIC |= {"settings": {}}
WRONG = [
    ("rows", "60"),
    ("width", 0),
    ("kind", "hnsw"),
    ("kind", "ivfpq"),
    ("sha256", "0"),
    ("calibration", 0.5),
    ("calibration", {"threshold": None}),
    ("calibration", {"threshold": float("nan")}),
    ("calibration", {"threshold": 0.5, "geometric": GEOMETRIC | {"min_inliers": "9"}}),
    ("calibration", {"threshold": 0.5, "geometric": GEOMETRIC | {"weight": "0.1"}}),
    ("calibration", {"threshold": 0.5, "geometric": {}}),
]
for key, value in WRONG:
    harm = lambda f, key=key, value=value: sealed.change(f, **{key: value})  # noqa: E731
    DAMAGE[f"{key} is {value!r}"] = ("meta.json", harm, "meta.json: damaged; build the index")


@pytest.mark.parametrize("damage", DAMAGE)
def test_damage_is_refused(folder, damage):
    name, harm, told = DAMAGE[damage]
    harm(folder / name)
    with pytest.raises(InputError, match=told):
        Index.open(folder)


def test_what_is_found_has_names_and_an_index_shows_itself_in_few_words(folder):
    index = Index.open(folder)
    found = index.search(ROWS[:2])
    assert found.scores.shape == found.rows.shape == (2, 10)
    assert [index.ids[row] for row in found.rows[:, 0]] == list(index.ids[:2])
    assert index.ids[0] not in repr(index) and str(folder) in repr(index)


def test_a_damaged_row_is_found_by_a_search(folder):
    """Opening reads none; what is finite is told from the checksum before an index is changed."""
    with (folder / "index.faiss").open("r+b") as file:
        file.seek(-4, 2)
        file.write(np.float32(np.inf).tobytes())
    found = Index.open(folder)
    with pytest.raises(InputError, match=r"index: row 59 of the index is not finite"):
        found.search(ROWS[:2], 3)
    with pytest.raises(InputError, match=r"index.faiss: damaged, its checksum is wrong"):
        directory.check_sum(folder / "index.faiss", found.meta)


def test_a_write_that_fails_leaves_the_old_index(tmp_path, folder):
    def fail(_):
        raise OSError("no space left")

    with pytest.raises(OSError, match="no space left"):
        directory.write(folder, IDS, META, fail)
    assert len(Index.open(folder)) == 60 and list(tmp_path.iterdir()) == [folder]


# --- several processes ---------------------------------------------------------------

HOLD = """
import sys
from dolg_tf.retrieval.index import directory
with directory.locked(sys.argv[1]):
    print("held", flush=True)
    sys.stdin.read()
"""


def test_one_process_changes_an_index_at_a_time(tmp_path, folder):
    (tmp_path / "link").symlink_to(folder)
    with subprocess.Popen(
        [sys.executable, "-c", HOLD, str(folder)],
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        text=True,
    ) as holder:
        assert holder.stdout.readline() == "held\n"
        for path in (folder, tmp_path / "link"):
            with pytest.raises(InputError, match="another process is changing this index"):
                directory.set_calibration(path, {"threshold": 0.5}, META)
        assert Index.open(folder).threshold is None  # it can be searched meanwhile
        holder.kill()
    directory.set_calibration(tmp_path / "link", {"threshold": 0.5}, META)
    assert Index.open(folder).threshold == 0.5 and (tmp_path / "link").is_symlink()


def test_files_of_two_indices_are_not_mixed(tmp_path, folder, monkeypatch):
    """Between two files that a reader opens, another process puts another index in place."""
    others, header = [_write(tmp_path / "other", -ROWS, model_hash="new")], directory._flat_header

    def replace_once(*size):
        if others:
            folder.rename(tmp_path / "aside")
            others.pop().rename(folder)
        return header(*size)

    monkeypatch.setattr(directory, "_flat_header", replace_once)
    found = Index.open(folder)
    assert not others and found.meta["model_hash"] == "new"
    np.testing.assert_array_equal(found.descriptors, -ROWS)


@pytest.mark.parametrize("step", ["read_meta", "check_sum", "read_ids", "_flat_header"])
def test_an_index_that_is_gone_for_a_moment_is_waited_for(tmp_path, folder, monkeypatch, step):
    """Between the two renames that replace an index, none is there."""
    ready, aside, right = [step], tmp_path / "aside", getattr(directory, step)

    def gone_once(*arguments):
        if ready:
            ready.pop()
            folder.rename(aside)
        return right(*arguments)

    monkeypatch.setattr(directory, step, gone_once)
    monkeypatch.setattr(directory.time, "sleep", lambda _: aside.rename(folder))
    assert len(Index.open(folder)) == 60 and not ready


def test_no_lock_is_left_beside_a_mistyped_path(tmp_path):
    with (
        pytest.raises(InputError, match=r"no index; `dolg index build`"),
        directory.locked(tmp_path / "none"),
    ):
        pass
    assert not list(tmp_path.iterdir())

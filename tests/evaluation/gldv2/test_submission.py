import numpy as np
import pytest

from dolg_tf.evaluation.gldv2 import submission
from dolg_tf.evaluation.gldv2.submission import SubmissionConfig
from dolg_tf.retrieval import descriptors
from dolg_tf.retrieval.descriptors import DescriptorSet
from dolg_tf.retrieval.exact import blocks
from dolg_tf.stage.config import InputError


def _write(path, ids, rows, bad=(), model_hash="m"):
    keys = ("image_root", "scales", "crop", "max_side", "whitening")
    bad = [{"id": id_, "reason": "broken"} for id_ in bad]
    meta = {**dict.fromkeys(keys), "model_hash": model_hash, "bad": bad}
    descriptors.write(path, DescriptorSet(tuple(ids), np.asarray(rows, np.float32), meta))


@pytest.fixture
def files(tmp_path):
    """GLDv2's layout: queries, one of them unreadable, and the index, 60 degrees apart."""
    angles = np.radians([0, 60, 120, 180])
    points = np.stack([np.cos(angles), np.sin(angles)], axis=1)
    _write(tmp_path / "q", ["0/1/2/012a", "0/1/2/012b"], points[[0, 3]], ["0/1/3/013c"])
    _write(tmp_path / "i", [f"a/b/c/abc{n}" for n in range(4)], points)
    _write(tmp_path / "n", ["9/9/9/999a"], points[[1]])
    texts = {
        "sample_retrieval": "id,images\n013c,\n012b,\n012a,\n",
        "sample_recognition": "id,landmarks\n013c,8815 0.03\n012b,8815 0.03\n012a,8815 0.03\n",
        "train": "id,url,landmark_id\n" + "".join(f"abc{n},,{4 - n // 2}\n" for n in range(4)),
    }
    for name, text in texts.items():
        (tmp_path / f"{name}.csv").write_text(text)
    return tmp_path


def _run(folder, task, **options):
    if task == "recognition":
        options.setdefault("train_csv", "train.csv")
    options = {"query_descriptors": "q", "index_descriptors": "i", **options}
    paths = {key: str(folder / value) for key, value in options.items() if key != "top_k"}
    path = submission.write_submission(
        SubmissionConfig(task=task, output=str(folder / "out.csv"), **{**options, **paths})
    )
    assert not list(folder.glob("*.parts"))
    return path.read_text()


def test_retrieval(files):
    text = _run(files, "retrieval")
    assert text == "id,images\n012a,abc0 abc1 abc2 abc3\n012b,abc3 abc2 abc1 abc0\n013c,\n"
    text = _run(files, "retrieval", sample_submission="sample_retrieval.csv")
    assert text == "id,images\n013c,\n012b,abc3 abc2 abc1 abc0\n012a,abc0 abc1 abc2 abc3\n"


def test_recognition(files):
    lines = _run(files, "recognition", top_k=2).split()
    assert lines[:2] == ["id,landmarks", "012a,4"] and float(lines[2]) == pytest.approx(1.5)
    text = _run(files, "recognition", sample_submission="sample_recognition.csv")
    assert [line.split(" ")[0] for line in text.splitlines()] == [
        "id,landmarks",
        "013c,",
        "012b,3",
        "012a,4",
    ]
    # abc1 is a non-landmark's twin: its similarity, and half of abc0's, is taken away.
    lines = _run(files, "recognition", top_k=1, non_landmarks="n").split()
    assert float(lines[2]) == pytest.approx(1 - 0.5 - 0.5)


def test_the_wrong_files(files):
    def refused(message, task, **options):
        with pytest.raises(InputError, match=message):
            _run(files, task, **options)
        assert not (files / "out.csv").exists()

    sample = "sample_recognition.csv"
    refused("--task=retrieval reads id,images", "retrieval", sample_submission=sample)
    (files / sample).write_text("id,landmarks\n012a,\n012x,\n")
    refused(
        "lacks 1 of the 2 wanted queries, the first is '012x'",
        "recognition",
        sample_submission=sample,
    )
    (files / "train.csv").write_text("id,url,landmark_id\nabc1,,3\n")
    refused("3 of 4 photos .* no landmark", "recognition")
    (files / "train.csv").write_text("id,url,landmark_id\nabc1,,3\nabc2,,")
    refused("line 3: landmark_id is ''", "recognition")
    _write(files / "i", ["abc0"], [[1, 0]], model_hash="another")
    refused("has model_hash 'another', .* 'm'", "retrieval")
    _write(files / "i", [], np.zeros((0, 2)))
    refused("no descriptors", "retrieval")
    shard = files / "q" / "descriptors-00000-of-00001.npy"
    shard.write_bytes(shard.read_bytes()[:-4])
    refused("not a complete .npy", "retrieval")
    (files / "folder").mkdir()
    with pytest.raises(InputError, match="is a folder"):
        SubmissionConfig(
            task="retrieval",
            query_descriptors="q",
            index_descriptors="i",
            output=str(files / "folder"),
        )


def test_interrupted(files, monkeypatch):
    """No half file is left, and the earlier submission is still there."""

    def interrupt(*_):
        raise KeyboardInterrupt

    whole = _run(files, "retrieval")
    (files / "out.csv").write_text("stood")
    search = blocks.search.search
    monkeypatch.setattr(blocks.search, "search", interrupt)
    with pytest.raises(KeyboardInterrupt):
        _run(files, "retrieval")
    assert (files / "out.csv").read_text() == "stood"
    monkeypatch.setattr(blocks.search, "search", search)
    assert _run(files, "retrieval") == whole

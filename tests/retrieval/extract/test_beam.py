"""Extraction on Apache Beam: the same set as extraction without it, row for row."""

import json
import pathlib
import pickle
import subprocess
import sys

import numpy as np
import pytest
from PIL import Image

from dolg_tf.retrieval.extract import beam, shards, stage
from dolg_tf.retrieval.extract.beam import BeamConfig
from dolg_tf.retrieval.extract.colour_histogram import colour_histograms
from dolg_tf.retrieval.extract.model import Describer
from dolg_tf.stage.config import InputError

pytest.importorskip("apache_beam", reason="install the extra: pip install -e '.[beam]'")
from dolg_tf.retrieval.extract import beam_rounds

SHAPES = [(40, 50), (50, 40), (40, 50), (33, 47)]
BATCHES = []


def describe(images):
    BATCHES.append(images.shape)
    return colour_histograms(images)


def open_describer(saved_model, scales):
    if saved_model.endswith("broken"):
        return Describer("hash", (1.0,), None, lambda: 1 / 0)
    return Describer("hash", tuple(scales or (1.0,)), None, lambda: describe)


@pytest.fixture
def photos(tmp_path, monkeypatch):
    """A folder of 11 photos; 3 shards of at most 4, in rounds of 2."""
    for module in (stage, beam):
        monkeypatch.setattr(module, "open_describer", open_describer)
    monkeypatch.setattr(shards, "SHARD_PHOTOS", 4)
    monkeypatch.setattr(beam_rounds, "_ROUND", 2)
    monkeypatch.setattr(beam_rounds, "_CHUNK", 3)
    return write_photos(tmp_path / "photos")


def write_photos(folder):
    rng = np.random.default_rng(0)
    (folder / "sub").mkdir(parents=True)
    for number in range(11):
        blocks = Image.fromarray(rng.integers(0, 256, (4, 4, 3), dtype=np.uint8))
        height, width = SHAPES[number % 4]
        blocks.resize((width, height)).save(folder / f"sub/{number:02d}.png")
    return folder


def config(photos, output, cls=BeamConfig, **options):
    options = {"saved_model": "model"} | options
    return cls(images=str(photos), output=str(output), **options)


def both(photos, tmp_path, **options):
    """Returns the sets of extraction without Beam and with it."""
    ours = stage.extract(config(photos, tmp_path / "plain", stage.ExtractConfig, **options))
    return ours, beam.extract_beam(config(photos, tmp_path / "beam", **options))


def assert_equal(ours, beams):
    assert beams.ids == ours.ids and beams.meta == ours.meta
    np.testing.assert_allclose(beams.descriptors[:], ours.descriptors[:], atol=1e-5)
    names = [{file.name for file in pathlib.Path(x.source).iterdir()} for x in (ours, beams)]
    assert names[0] == names[1]


def test_the_same_set_as_without_beam(photos, tmp_path):
    BATCHES.clear()
    ours, beams = both(photos, tmp_path, batch_size=2)
    assert len(ours) == 11
    assert_equal(ours, beams)
    # Photos of equal size, from several shards, were described together.
    assert max(shape[0] for shape in BATCHES) == 2 and len(set(BATCHES)) > 3


def test_boxes_and_sizes_reach_the_workers(photos, tmp_path):
    names = [f"sub/{number:02d}" for number in range(11)]
    query = {"bbx": [5.7, 3.2, 25, 99], "easy": [0], "hard": [], "junk": []}
    truth = {"imlist": names[:3], "qimlist": names[3:9], "gnd": [query] * 6}
    path = tmp_path / "gnd_x.pkl"
    path.write_bytes(pickle.dumps(truth))
    BATCHES.clear()
    options = {"image_root": str(photos), "subset": "query", "max_side": 20}
    ours, beams = both(path, tmp_path, dtype="float16", **options)
    assert beams.meta["crop"] and beams.meta["dtype"] == "float16"
    assert_equal(ours, beams)
    # Cut at 5, 3, 25, height; then at the scale by which the photo's longest side becomes 20.
    assert {shape[1:3] for shape in BATCHES} == {(15, 8), (19, 8), (13, 9)}
    assert (beams.meta["query_scale"], beams.meta["box_rounding"]) == ("photo", "dolg")
    BATCHES.clear()
    options |= {"query_scale": "crop", "box_rounding": "how"}
    beams = beam.extract_beam(config(path, tmp_path / "crop", **options))
    assert {max(shape[1:3]) for shape in BATCHES} == {20}
    assert (beams.meta["query_scale"], beams.meta["box_rounding"]) == ("crop", "how")


def test_bad_photos(photos, tmp_path):
    (photos / "sub/05.png").write_bytes(b"no photo")
    for number in range(8, 11):  # a shard without one good photo
        (photos / f"sub/{number:02d}.png").write_bytes(b"")
    with pytest.raises(InputError, match=r"4 unreadable photos, but --max_bad=3;"):
        beam.extract_beam(config(photos, tmp_path / "beam", max_bad=3))
    ours, beams = both(photos, tmp_path, max_bad=4)
    assert [bad["id"] for bad in beams.meta["bad"]] == [f"sub/{n:02d}" for n in (5, 8, 9, 10)]
    assert len(beams) == 7
    assert_equal(ours, beams)
    (photos / "sub/00.png").unlink()
    (photos / "list.csv").write_text("id\nsub/00\nsub/01\n")
    options = {"image_root": str(photos)}
    with pytest.raises(InputError, match=r"1 of 2 photos are missing.*sub/00"):
        beam.extract_beam(config(photos / "list.csv", tmp_path / "x", **options))


def test_bad_photos_stop_the_rounds(photos, tmp_path):
    (photos / "sub/05.png").write_bytes(b"no photo")
    BATCHES.clear()
    with pytest.raises(
        InputError, match=r"1 unreadable photos, but --max_bad=0; .*raise --max_bad"
    ):
        beam.extract_beam(config(photos, tmp_path / "beam"))
    assert sum(shape[0] for shape in BATCHES) == 7  # the first round's


def test_rows_come_in_any_order(tmp_path):
    rows = np.random.default_rng(0).normal(size=(20, 4)).astype(np.float32)
    found = [(row, rows[row]) for row in np.random.default_rng(1).permutation(20)]
    bad = [{"id": "b", "reason": "y"}, {"id": "a", "reason": "x"}]
    beam_rounds._save((3, [(22, bad[1]), *found, (21, bad[0])]), tmp_path)
    saved, listed = beam_rounds._read_rows(tmp_path / "rows-00003.npz")
    np.testing.assert_array_equal(saved, rows)
    assert listed == bad
    with pytest.raises(InputError, match=r"rows-00004\.npz: Beam's workers did not write it"):
        beam_rounds._read_rows(tmp_path / "rows-00004.npz")


def test_a_box_outside_its_photo(photos, tmp_path):
    query = {"bbx": [500, 500, 600, 600], "easy": [0], "hard": [], "junk": []}
    truth = {"imlist": ["sub/00"], "qimlist": ["sub/01"], "gnd": [query]}
    path = tmp_path / "gnd_x.pkl"
    path.write_bytes(pickle.dumps(truth))
    options = {"image_root": str(photos), "subset": "query"}
    with pytest.raises(InputError, match=r"has no pixel of its 40 x 50; .*--nocrop_queries$"):
        beam.extract_beam(config(path, tmp_path / "beam", **options))
    assert not (tmp_path / "beam").exists()


def test_goes_on_after_an_interruption(photos, tmp_path, monkeypatch):
    ours = stage.extract(config(photos, tmp_path / "plain", stage.ExtractConfig))
    run, rounds = beam_rounds._run, []

    def interrupted(pipeline):
        if rounds:
            raise KeyboardInterrupt
        rounds.append(run(pipeline))

    monkeypatch.setattr(beam_rounds, "_run", interrupted)
    with pytest.raises(KeyboardInterrupt):
        beam.extract_beam(config(photos, tmp_path / "beam"))
    assert not list((tmp_path / "beam/unfinished").glob("beam-*"))
    with pytest.raises(InputError, match="unfinished: 2 of 3 shards"):
        stage.descriptors.read(tmp_path / "beam")
    BATCHES.clear()
    monkeypatch.setattr(beam_rounds, "_run", run)
    beams = beam.extract_beam(config(photos, tmp_path / "beam"))
    assert sum(shape[0] for shape in BATCHES) == 3  # the third shard's
    assert_equal(ours, beams)


def test_an_interruption_of_a_worker(photos, tmp_path, monkeypatch):
    def interrupt(images):
        raise KeyboardInterrupt

    monkeypatch.setattr(sys.modules[__name__], "describe", interrupt)
    with pytest.raises(KeyboardInterrupt):
        beam.extract_beam(config(photos, tmp_path / "beam"))
    assert not (tmp_path / "beam").exists()


def test_parts_one_of_them_without_beam(photos, tmp_path):
    assert beam.extract_beam(config(photos, tmp_path / "both", shard="1/2")) is None
    rest = config(photos, tmp_path / "both", stage.ExtractConfig, shard="0/2")
    ours = stage.extract(config(photos, tmp_path / "plain", stage.ExtractConfig))
    assert_equal(ours, stage.extract(rest))


def test_options(photos, tmp_path):
    def fails(message, **options):
        with pytest.raises(InputError, match=message):
            beam.extract_beam(config(photos, tmp_path / "beam", **options))

    fails(r"--runner=Nope: Unexpected pipeline runner: Nope\. Valid values", runner="Nope")
    fails("Beam has no option 'nope'", beam_options=("nope=3",))
    fails("--beam_options=direct_num_workers=x: Beam does", beam_options=("direct_num_workers=x",))
    fails("--runner=DataflowRunner: (?s:.*)required option: project", runner="DataflowRunner")
    known = {"flink_master": "host:1", "use_public_ips": False, "job_name": "a"}
    options = beam_rounds.pipeline_options(
        "FlinkRunner", ["flink_master=host:1", "no_use_public_ips", "job_name=a", "parallelism=3"]
    ).get_all_options()
    assert {key: options[key] for key in known} == known and options["runner"] == "FlinkRunner"
    assert not (tmp_path / "beam").exists()


def test_errors_that_are_no_input_errors_are_not_hidden(photos, tmp_path):
    with pytest.raises(ZeroDivisionError):
        beam.extract_beam(config(photos, tmp_path / "beam", saved_model="broken"))


def test_without_beam(monkeypatch, photos, tmp_path):
    monkeypatch.setitem(sys.modules, "apache_beam", None)
    monkeypatch.delitem(sys.modules, "dolg_tf.retrieval.extract.beam_rounds")
    monkeypatch.delattr("dolg_tf.retrieval.extract.beam_rounds")
    with pytest.raises(InputError, match=r"apache_beam is missing; pip install .*\[beam\]'"):
        beam.extract_beam(config(photos, tmp_path / "beam"))


@pytest.mark.slow
def test_command_line_with_worker_processes(tmp_path):
    """Two workers that share nothing with the command but the disk, as on a cluster."""
    import tensorflow as tf

    class Model(tf.Module):
        def __init__(self):
            self.kernel = tf.Variable(tf.random.stateless_normal((12, 512), (0, 1)))

        @tf.function(
            input_signature=[
                tf.TensorSpec([None, None, None, 3], tf.uint8, "images"),
                tf.TensorSpec([None], tf.float32, "scales"),
            ]
        )
        def images(self, images, scales):
            pixels = tf.image.resize(tf.cast(images, tf.float32) / 255.0, (2, 2))
            rows = tf.reshape(pixels, (-1, 12)) @ self.kernel * tf.reduce_sum(scales)
            return {"descriptors": tf.math.l2_normalize(rows, axis=-1)}

    model, saved = Model(), tmp_path / "model"
    tf.saved_model.save(model, str(saved), signatures={"images": model.images})
    (saved / "assets.extra").mkdir()
    about = {"format_version": 1, "scales": [1.0], "weights_sha256": "0123"}
    (saved / "assets.extra/dolg.json").write_text(json.dumps(about))
    write_photos(tmp_path / "photos")
    options = {"saved_model": "model", "images": "photos"}
    workers = "--beam_options=direct_num_workers=2,direct_running_mode=multi_processing"
    commands = (["extract", "--output=plain"], ["extract-beam", "--output=beam", workers])
    for command in commands:
        flags = [f"--{key}={value}" for key, value in options.items()]
        done = subprocess.run(
            [sys.executable, "-m", "dolg_tf", *command, *flags],
            cwd=tmp_path,
            capture_output=True,
            text=True,
            check=False,
        )
        assert done.returncode == 0, done.stderr
        assert "11 photos described, 0 bad" in done.stderr
    assert_equal(*(stage.descriptors.read(tmp_path / name) for name in ("plain", "beam")))

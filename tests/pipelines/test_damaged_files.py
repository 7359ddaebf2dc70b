"""Readers of damaged files: each file is read, or refused in one line that names it."""

import numpy as np
import pytest
import sealed
from mutations import KINDS, mutated
from set_meta import META
from small_records import example

from dolg_tf.data.records import foreign, tfrecord, verify
from dolg_tf.retrieval import datum_io, descriptors
from dolg_tf.retrieval.descriptors import DescriptorSet
from dolg_tf.retrieval.extract import photo_records
from dolg_tf.retrieval.index.directory import Index
from dolg_tf.retrieval.index.stages import BuildConfig, build
from dolg_tf.runtime.whitening import load_whitening, write_whitening
from dolg_tf.stage.config import InputError

ROWS = np.eye(6, 8, dtype=np.float32)
TRIES = 8 * len(KINDS)


def _write_set(path):
    """As older releases wrote it: without checksums, which would find everything."""
    ids = tuple(f"a/{number}" for number in range(len(ROWS)))
    descriptors.write(path, DescriptorSet(ids, ROWS, META))
    sealed.forget(path / "meta.json")


def _write_index(path):
    _write_set(path.with_name("set"))
    build(BuildConfig(descriptors=str(path.with_name("set")), output=str(path)))
    sealed.forget(path / "meta.json")


def _read_records(path):
    index = tfrecord.RecordIndex.open(str(path))
    for number in range(len(index)):
        foreign.schema_fault(index.read(number))


def _write_records(path):
    tfrecord.write_shard(path, map(example, range(3)))


READERS = {
    "set": (_write_set, descriptors.read),
    "x.npy": (lambda path: np.save(path, ROWS), descriptors.read),
    "index": (_write_index, lambda path: Index.open(path).search(ROWS, 3)),
    "w.npz": (
        lambda path: write_whitening(path, ROWS[0], np.eye(8), "hash"),
        lambda path: load_whitening(path, 8),
    ),
    "train-00000-of-00001": (_write_records, _read_records),
    "test-00000-of-00001": (_write_records, lambda path: [*photo_records.list_records(str(path))]),
    "verified": (_write_records, lambda path: verify.verify_file(str(path))),
    "x.delg_global": (lambda path: path.write_bytes(datum_io.encode(ROWS[0])), datum_io.read),
}


@pytest.mark.parametrize("name", READERS)
def test_damage_is_one_line_or_harmless(tmp_path, name):
    write, read = READERS[name]
    path = tmp_path / name
    write(path)
    read(path)
    files = sorted(path.iterdir()) if path.is_dir() else [path]
    told = 0
    for file in files:
        whole = file.read_bytes()
        for seed in range(TRIES):
            file.write_bytes(mutated(whole, seed))
            try:
                read(path)
            except InputError as error:
                told += 1
                assert str(tmp_path) in str(error)
        file.write_bytes(whole)
    assert told or name == "verified"


@pytest.mark.parametrize("seed", range(TRIES))
def test_records_whose_checksums_are_right_and_contents_wrong(tmp_path, seed):
    """The error lets go of the mapped file."""
    path = tmp_path / "train-00000-of-00001"
    tfrecord.write_shard(path, [mutated(example(0), seed)])
    for read in (_read_records, lambda path: [*photo_records.list_records(str(path))]):
        try:
            read(path)
        except InputError as error:
            assert str(path) in str(error)
    assert verify.verify_file(str(path)).records == 1

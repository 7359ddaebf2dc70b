"""--shard_by=file: each worker draws from files of its own, and all take equally many steps."""

import dataclasses

import numpy as np
import pytest
from small_records import CLASSES, SIZE, example

from dolg_tf.data.config import DataConfig
from dolg_tf.data.input import pipeline
from dolg_tf.data.records import tfrecord
from dolg_tf.stage.config import InputError

FILES = (9, 4, 7, 0, 5, 6)  # records of each; number i of file f has label f % CLASSES


@pytest.fixture(scope="module")
def data(tmp_path_factory):
    folder, number = tmp_path_factory.mktemp("records"), 0
    for shard, count in enumerate(FILES):
        examples = [example(number + i, shard % CLASSES) for i in range(count)]
        tfrecord.write_shard(folder / tfrecord.shard_name("train", shard, len(FILES)), examples)
        number += count
    return DataConfig(
        train_file_pattern=f"{folder}/train-*",
        num_classes=CLASSES,
        image_size=SIZE,
        shard_by="file",
    )


def ids_of_worker(worker, workers):
    firsts = np.cumsum((0, *FILES))
    return {
        f"id{i}"
        for file in range(worker, len(FILES), workers)
        for i in range(firsts[file], firsts[file + 1])
    }


@pytest.mark.parametrize(("workers", "batch"), [(2, 4), (3, 6), (3, 3), (1, 5)])
def test_each_worker_draws_from_its_own_files(data, workers, batch):
    train = pipeline.TrainingInput(data, batch, 3, workers)
    share, steps = batch // workers, train.steps_per_epoch
    own = [ids_of_worker(worker, workers) for worker in range(workers)]
    assert train.num_photos == 31
    assert steps == min(map(len, own)) // share
    orders = []
    for epoch in range(2):
        ids = [train.ids_of_step(step) for step in range(epoch * steps, (epoch + 1) * steps)]
        ids = np.array(ids).reshape(steps, workers, share)
        for worker in range(workers):
            seen = ids[:, worker].ravel().tolist()
            assert len(set(seen)) == len(seen) and set(seen) <= own[worker]
        orders.append(ids)
    assert (orders[0] != orders[1]).any()


def test_every_photo_comes_in_some_epoch(data):
    train = pipeline.TrainingInput(data, 4, 3, 2)
    ids = {name for step in range(10 * train.steps_per_epoch) for name in train.ids_of_step(step)}
    assert len(ids) == 31


def test_workers_read_the_photos_that_the_order_says(data):
    train = pipeline.TrainingInput(data, 6, 3, 3)
    numbers = train.photos_of_step(2)[0].numpy().reshape(3, 2)
    labels = []
    for worker in range(3):
        dataset = train.dataset(2, 1, worker, 3, replicas=2)
        assert dataset.element_spec[0].shape == (1, SIZE, SIZE, 3)
        labels.append([int(label[0]) for _, label, _ in dataset])
        assert set(labels[-1]) <= {worker % CLASSES, (worker + 3) % CLASSES}
    index = tfrecord.RecordIndex.open(data.train_file_pattern, groups=3)
    expected = [[tfrecord.parse(index.read(number))["label"] for number in row] for row in numbers]
    np.testing.assert_array_equal(labels, expected)


def test_another_number_of_workers_is_refused(data):
    with pytest.raises(ValueError, match="divided among 3 workers, not 2"):
        pipeline.TrainingInput(data, 6, 3, 3).dataset(0, 1, 0, 2)


def test_fewer_files_than_workers(data):
    with pytest.raises(InputError, match="matches 6 files, too few for 7 workers"):
        pipeline.TrainingInput(data, 7, 3, 7)


def test_worker_with_too_few_photos(data):
    with pytest.raises(InputError, match="holds 0 photos for worker 3, less than one batch of 1"):
        pipeline.TrainingInput(data, 6, 3, 6)


def test_shard_by_photo_does_not_depend_on_the_workers(data):
    data = dataclasses.replace(data, shard_by="photo")
    one, two = (pipeline.TrainingInput(data, 4, 3, workers) for workers in (1, 2))
    assert one.steps_per_epoch == two.steps_per_epoch == 7
    assert [one.ids_of_step(5)] == [two.ids_of_step(5)]

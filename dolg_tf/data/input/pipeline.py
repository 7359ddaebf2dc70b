"""Records -> batches of photos, in an order that can be computed from (seed, epoch) alone.

There is no shuffle buffer: an epoch is a permutation of the record numbers. Each place of it can be
computed on its own, and each record is read where it lies. So a run resumes immediately at any
step, and the batch of a step depends only on the seed and the step. No Python runs inside.
"""

import functools
from collections.abc import Callable, Iterator

import numpy as np
import tensorflow as tf

from dolg_tf.data.config import DataConfig
from dolg_tf.data.input import augment, loading
from dolg_tf.data.input.faults import explain, find_faults, image_id
from dolg_tf.data.records import tfrecord
from dolg_tf.data.records.foreign import refuse_foreign
from dolg_tf.stage.config import InputError


class TrainingInput:
    """The training photos.

    With `shard_by="photo"` the batch of a step is the same for any number of workers, and each
    worker reads its slice from all the files. With `shard_by="file"` worker w owns the files w,
    w + num_workers, ... of the sorted list and draws its slice from these alone. The batch of a
    step then also depends on the number of workers.

    Args:
      data: which records, and how their photos are augmented.
      batch_size: photos per step, over all workers.
      seed: of order and augmentation.
      num_workers: number of workers that share the files; used only with `shard_by="file"`.

    Raises:
      InputError: when there is less than one batch of records, or fewer files than workers.
    """

    def __init__(self, data: DataConfig, batch_size: int, seed: int, num_workers: int = 1):
        self._data, self._batch_size, self._seed = data, batch_size, seed
        # Workers that draw from the same records form a group: all of them, or each alone.
        groups = num_workers if data.shard_by == "file" else 1
        self._share, _ = _slice(batch_size, 0, groups)
        self._index = tfrecord.RecordIndex.open(
            data.train_file_pattern, groups, data.skip_bad_records
        )
        refuse_foreign(self._index)
        self._sizes = self._index.group_sizes
        smallest = int(np.argmin(self._sizes))
        if self._sizes[smallest] < self._share:
            whose = f" for worker {smallest}" if groups > 1 else ""
            raise InputError(
                f"{data.train_file_pattern!r} holds {self._sizes[smallest]} photos{whose}, less "
                f"than one batch of {self._share}; lower --batch_size or add photos"
            )

    @property
    def num_photos(self) -> int:
        return len(self._index)

    @property
    def steps_per_epoch(self) -> int:
        """Number of whole batches per epoch; each epoch leaves over different photos.

        With `shard_by="file"` the worker with the fewest photos sets the number for all, so the
        others leave over more.
        """
        return int(self._sizes.min()) // self._share

    def upright(self) -> bool:
        """Returns whether the photos were turned by their EXIF orientation when they were written.

        Raises:
          InputError: when those of some files were, others not; or training photos, and those of
            validation not.
        """
        pattern, other = self._data.train_file_pattern, self._data.validation_file_pattern
        upright = self._index.upright(pattern)
        if other and _validation_index(self._data).upright(other) != upright:
            words = ("turned", "not turned") if upright else ("not turned", "turned")
            raise InputError(
                f"{pattern!r} holds photos {words[0]} by their EXIF orientation, {other!r} photos "
                f"{words[1]}; build both with or without --upright"
            )
        return upright

    def photos_of_step(self, step) -> tuple[tf.Tensor, augment.Draws]:
        """Returns the record numbers of a step, int64 (batch_size,), and their random choices."""
        step = tf.cast(step, tf.int64)
        epoch, place = step // self.steps_per_epoch, step % self.steps_per_epoch
        positions = place * self._share + tf.range(self._share, dtype=tf.int64)
        numbers, begin = [], 0
        for group, size in enumerate(self._sizes.tolist()):
            # A permutation of all photos of the group: position -> number, without a table.
            seed = tf.stack([tf.constant(self._seed + (group << 32), tf.int64), epoch])
            shuffled = tf.random.experimental.index_shuffle(positions, seed, max_index=size - 1)
            numbers.append(begin + shuffled)
            begin += size
        # A photo has one position per epoch, so the draws depend on (seed, epoch, photo).
        key = np.uint64((self._seed % 2**32) << 32) + tf.cast(epoch, tf.uint64)
        first, count = place * self._batch_size, self._batch_size
        return tf.concat(numbers, 0), augment.draw(key, first, count, self._data.crop_area_min)

    def dataset(
        self,
        start_step: int,
        num_steps: int,
        worker: int = 0,
        num_workers: int = 1,
        replicas: int = 1,
    ) -> tf.data.Dataset:
        """Returns `num_steps` batches of one worker, from `start_step` on.

        Args:
          start_step: the first step, counted from 0.
          num_steps: number of steps.
          worker, num_workers: which slice of each step's batch.
          replicas: number of pieces that the slice comes in, one per replica of the worker.

        Returns:
          Dataset of images float32 RGB (b, S, S, 3), labels int32 (b,) and weights float32 (b,), b
          = batch_size / num_workers / replicas, S = image_size: `replicas` elements per step.
          Images are in [0, 1], except that lighting noise may leave it by some hundredths. The
          weight of a photo is 1, or 0 for a bad record that is skipped (zeros, label 0).
        """
        size, begin = _slice(self._batch_size, worker, num_workers)
        if self._data.shard_by == "file" and num_workers != len(self._sizes):
            raise ValueError(f"files divided among {len(self._sizes)} workers, not {num_workers}")
        read = loading.labelled_reader(self._index, self._data.num_classes)

        def photos(step):
            return tf.nest.map_structure(
                lambda values: values[begin : begin + size], self.photos_of_step(step)
            )

        def load(number, draws):
            encoded, label = read(number)
            return loading.training_photo(encoded, self._data, draws), label, 1.0

        steps = tf.data.Dataset.range(start_step, start_step + num_steps)
        return _batches(steps.map(photos).unbatch(), load, self._data, _piece(size, replicas))

    def ids_of_step(self, step: int) -> list[str]:
        """Returns the image ids of a step's batch; "FILE, record N" where there is none."""
        return [image_id(self._index, number) for number in self._numbers(step)]

    def faults_of_step(self, step: int) -> list[str]:
        """Returns place and fault of each bad record in a step's batch."""
        return list(self._faults(step))

    def describe(self, error: Exception, step: int) -> Exception:
        """Returns an InputError that names the file and record behind a failed step.

        Args:
          error: what iterating over `dataset` raised.
          step: the step whose batch failed.

        Returns:
          `error` itself if no record of the step is at fault.
        """
        return explain(error, self._index, self._numbers(step), self._data.num_classes)

    def _numbers(self, step: int) -> list[int]:
        return self.photos_of_step(step)[0].numpy().tolist()

    def _faults(self, step: int) -> Iterator[str]:
        numbers = self._numbers(step)
        return find_faults(self._index, numbers, self._data.num_classes)


@functools.lru_cache(maxsize=1)  # a run validates often, and the headers are many
def _validation_index(data: DataConfig) -> tfrecord.RecordIndex:
    pattern = data.validation_file_pattern
    index = tfrecord.RecordIndex.open(pattern, skip_damaged=data.skip_bad_records)
    refuse_foreign(index)
    return index


def validation_dataset(
    data: DataConfig, batch_size: int, worker: int = 0, num_workers: int = 1, replicas: int = 1
) -> tuple[tf.data.Dataset, int]:
    """Returns every validation photo exactly once, and how many there are.

    Args:
      data: which records; `image_size`.
      batch_size: photos per batch, over all workers.
      worker, num_workers: which slice of each batch.
      replicas: number of pieces that the slice comes in, one per replica of the worker.

    Returns:
      Dataset of images float32 RGB (b, S, S, 3) in [0, 1], labels int32 (b,) and weights float32
      (b,), b = batch_size / num_workers / replicas; and the number of photos over all workers. The
      last batch is padded with photos of weight 0, so all workers have equally many. Skipped bad
      records also have weight 0 (zeros, label 0), but count in the number of photos.

    Raises:
      InputError: when there are no records.
    """
    index = _validation_index(data)
    size, begin = _slice(batch_size, worker, num_workers)
    batches = -(-len(index) // batch_size)
    numbers = np.arange(batches * batch_size).reshape(batches, batch_size)
    numbers = numbers[:, begin : begin + size].ravel()
    read = loading.labelled_reader(index, data.num_classes)

    def load(number):
        counts = number < len(index)
        encoded, label = read(tf.where(counts, number, 0))
        image = loading.validation_photo(encoded, data.image_size)
        return image, label, tf.cast(counts, tf.float32)

    photos = tf.data.Dataset.from_tensor_slices(numbers)
    return _batches(photos, load, data, _piece(size, replicas)), len(index)


def describe_validation(error: Exception, data: DataConfig) -> Exception:
    """Returns an InputError that names the first bad validation record, or `error` itself."""
    index = _validation_index(data)
    return explain(error, index, range(len(index)), data.num_classes)


# --- many photos --------------------------------------------------------------------------


def _slice(batch_size: int, worker: int, num_workers: int) -> tuple[int, int]:
    """Returns the number of a worker's photos in a batch, and the first of them."""
    if batch_size % num_workers:
        raise InputError(f"--batch_size={batch_size} is not divisible by {num_workers} workers")
    size = batch_size // num_workers
    return size, worker * size


def _piece(size: int, replicas: int) -> int:
    """Returns the number of one replica's photos in a worker's slice."""
    if size % replicas:
        raise InputError(
            f"--batch_size gives a worker {size} photos, which {replicas} replicas cannot share"
        )
    return size // replicas


def _batches(
    photos: tf.data.Dataset, load: Callable, data: DataConfig, size: int
) -> tf.data.Dataset:
    if data.skip_bad_records:
        load = loading.skip_bad(load, data.image_size)
    options = tf.data.Options()
    options.deterministic = True
    # The workers' slices are made already.
    options.experimental_distribute.auto_shard_policy = tf.data.experimental.AutoShardPolicy.OFF
    loaded = photos.map(load, num_parallel_calls=tf.data.AUTOTUNE, deterministic=True)
    return loaded.batch(size, drop_remainder=True).prefetch(2).with_options(options)

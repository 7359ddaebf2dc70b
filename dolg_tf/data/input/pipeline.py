"""Records -> batches of photos, in an order that can be computed from (seed, epoch) alone.

There is no shuffle buffer: an epoch is a permutation of the record numbers whose every place can be
computed by itself, and a record is read where it lies. So a run resumes at once at any step, and
the batch of a step depends on nothing but the seed and the step. No Python runs inside.
"""

import functools
from collections.abc import Callable, Iterator

import numpy as np
import tensorflow as tf

from dolg_tf.data.config import DataConfig
from dolg_tf.data.input import augment, loading
from dolg_tf.data.input.faults import explain, find_faults, image_id
from dolg_tf.data.records import tfrecord
from dolg_tf.stage.config import InputError


class TrainingInput:
    """The training photos.

    With `shard_by="photo"` the batch of a step is the same for any number of workers, and each
    reads its slice of it from all the files. With `shard_by="file"` worker w has files w,
    w + num_workers, ... of the sorted list to itself and draws its slice from these alone; the
    batch of a step then depends on the number of workers too.

    Args:
      data: which records, and how their photos are augmented.
      batch_size: photos in a step over all workers.
      seed: of order and augmentation.
      num_workers: among how many workers the files are divided; only `shard_by="file"` asks.

    Raises:
      InputError: when there are no records, fewer than one batch, or fewer files than workers.
    """

    def __init__(self, data: DataConfig, batch_size: int, seed: int, num_workers: int = 1):
        self._data, self._batch_size, self._seed = data, batch_size, seed
        # Who draws from the same records is a group: all workers, or each by itself.
        groups = num_workers if data.shard_by == "file" else 1
        self._share, _ = _slice(batch_size, 0, groups)
        self._index = tfrecord.RecordIndex.open(
            data.train_file_pattern, groups, data.skip_bad_records
        )
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
        """Whole batches in an epoch; the photos left over are other ones in each epoch.

        With `shard_by="file"` the worker with the fewest photos sets the number for all, so that
        of the others more are left over.
        """
        return int(self._sizes.min()) // self._share

    def photos_of_step(self, step) -> tuple[tf.Tensor, augment.Draws]:
        """Returns record numbers int64 (batch_size,) of a step, and what chance does to each."""
        step = tf.cast(step, tf.int64)
        epoch, place = step // self.steps_per_epoch, step % self.steps_per_epoch
        positions = place * self._share + tf.range(self._share, dtype=tf.int64)
        numbers, begin = [], 0
        for group, size in enumerate(self._sizes.tolist()):
            # A permutation of all the photos of the group: position -> number, without a table.
            seed = tf.stack([tf.constant(self._seed + (group << 32), tf.int64), epoch])
            shuffled = tf.random.experimental.index_shuffle(positions, seed, max_index=size - 1)
            numbers.append(begin + shuffled)
            begin += size
        # A photo has one position in an epoch, so this is by (seed, epoch, photo).
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
        """Returns `num_steps` batches, from `start_step` on, of one worker.

        Args:
          start_step: the first step, counted from 0.
          num_steps: how many steps.
          worker, num_workers: which slice of each step's batch.
          replicas: in how many pieces the slice comes, one for each replica of the worker.

        Returns:
          Dataset of images float32 RGB (b, S, S, 3), labels int32 (b,) and weights float32 (b,), b
          = batch_size / num_workers / replicas, S = image_size: `replicas` elements a step. Images
          are in [0, 1], but for lighting noise, which may lead out by some hundredths. A photo
          counts with its weight: 1, or 0 for a bad record that is skipped (zeros, label 0).
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
        """Returns the image ids of a step's batch; "FILE, record N" for one that has none."""
        return [image_id(self._index, number) for number in self._numbers(step)]

    def faults_of_step(self, step: int) -> list[str]:
        """Returns what is wrong with records of a step's batch: the place and the fault of each."""
        return list(self._faults(step))

    def describe(self, error: Exception, step: int) -> Exception:
        """Returns an InputError that names the file and record behind a failed step.

        Args:
          error: what iterating over `dataset` raised.
          step: the step whose batch was asked for.

        Returns:
          `error` itself when no record of the step is at fault.
        """
        return explain(error, self._faults(step))

    def _numbers(self, step: int) -> list[int]:
        return self.photos_of_step(step)[0].numpy().tolist()

    def _faults(self, step: int) -> Iterator[str]:
        numbers = self._numbers(step)
        return find_faults(self._index, numbers, self._data.num_classes)


@functools.lru_cache(maxsize=1)  # a run validates often, and the headers are many
def _validation_index(data: DataConfig) -> tfrecord.RecordIndex:
    pattern = data.validation_file_pattern
    return tfrecord.RecordIndex.open(pattern, skip_damaged=data.skip_bad_records)


def validation_dataset(
    data: DataConfig, batch_size: int, worker: int = 0, num_workers: int = 1, replicas: int = 1
) -> tuple[tf.data.Dataset, int]:
    """Returns every validation photo exactly once, and how many there are.

    Args:
      data: which records; `image_size`.
      batch_size: photos in a batch over all workers.
      worker, num_workers: which slice of each batch.
      replicas: in how many pieces the slice comes, one for each replica of the worker.

    Returns:
      Dataset of images float32 RGB (b, S, S, 3) in [0, 1], labels int32 (b,) and weights float32
      (b,), b = batch_size / num_workers / replicas; and the number of photos over all workers. The
      last batch is filled up with photos of weight 0, so all workers have the same number of them.
      Where bad records are skipped, they have weight 0 too (zeros, label 0), but are among the
      number of photos.

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
    faults = find_faults(index, range(len(index)), data.num_classes)
    return explain(error, faults)


# --- many photos --------------------------------------------------------------------------


def _slice(batch_size: int, worker: int, num_workers: int) -> tuple[int, int]:
    """Returns how many photos of a batch are a worker's, and the first of them."""
    if batch_size % num_workers:
        raise InputError(f"--batch_size={batch_size} is not divisible by {num_workers} workers")
    size = batch_size // num_workers
    return size, worker * size


def _piece(size: int, replicas: int) -> int:
    """Returns how many photos of a worker's slice are one replica's."""
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
    # The slices of the workers are already made.
    options.experimental_distribute.auto_shard_policy = tf.data.experimental.AutoShardPolicy.OFF
    loaded = photos.map(load, num_parallel_calls=tf.data.AUTOTUNE, deterministic=True)
    return loaded.batch(size, drop_remainder=True).prefetch(2).with_options(options)

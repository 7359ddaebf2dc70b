"""Records -> batches of photos, in an order that can be computed from (seed, epoch) alone.

There is no shuffle buffer: an epoch is a permutation of the record numbers whose every place can be
computed by itself, and a record is read where it lies. So a run resumes at once at any step, and
the batch of a step depends on nothing but the seed and the step. No Python runs inside.
"""

from collections.abc import Callable, Iterable

import numpy as np
import tensorflow as tf

from dolg_tf.config import DataConfig, InputError
from dolg_tf.data import augment, images, records

VALIDATION_CROP = 0.875  # of the shorter side


class TrainingInput:
    """The training photos.

    Args:
      data: which records, and how their photos are augmented.
      batch_size: photos in a step over all workers.
      seed: of order and augmentation.

    Raises:
      InputError: when there are no records, or fewer than one batch.
    """

    def __init__(self, data: DataConfig, batch_size: int, seed: int):
        self._data, self._batch_size, self._seed = data, batch_size, seed
        self._index = records.RecordIndex.open(data.train_file_pattern)
        if len(self._index) < batch_size:
            raise InputError(
                f"{data.train_file_pattern!r} holds {len(self._index)} photos, less than one batch "
                f"of {batch_size}; lower --batch_size or add photos"
            )

    @property
    def num_photos(self) -> int:
        return len(self._index)

    @property
    def steps_per_epoch(self) -> int:
        """Whole batches in an epoch; the photos left over are other ones in each epoch."""
        return len(self._index) // self._batch_size

    def photos_of_step(self, step) -> tuple[tf.Tensor, tf.Tensor]:
        """Returns record numbers int64 (batch_size,) and seeds int64 (batch_size, 2) of a step."""
        step = tf.cast(step, tf.int64)
        epoch, place = step // self.steps_per_epoch, step % self.steps_per_epoch
        positions = place * self._batch_size + tf.range(self._batch_size, dtype=tf.int64)
        # A permutation of all the photos: position -> number, without a table.
        numbers = tf.random.experimental.index_shuffle(
            positions,
            seed=tf.stack([tf.constant(self._seed, tf.int64), epoch]),
            max_index=len(self._index) - 1,
        )
        seeds = tf.stack([tf.fill(numbers.shape, (self._seed << 32) + epoch), numbers], axis=1)
        return numbers, seeds

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
          Dataset of images float32 RGB (b, S, S, 3) and labels int32 (b,), b = batch_size /
          num_workers / replicas, S = image_size: `replicas` elements a step. Images are in [0, 1],
          but for lighting noise, which may lead out by some hundredths.
        """
        size, begin = _slice(self._batch_size, worker, num_workers)
        read = _labelled_reader(self._index, self._data.num_classes)

        def photos(step):
            numbers, seeds = self.photos_of_step(step)
            return numbers[begin : begin + size], seeds[begin : begin + size]

        def load(number, seed):
            encoded, label = read(number)
            return _augmented(encoded, self._data, seed), label

        steps = tf.data.Dataset.range(start_step, start_step + num_steps)
        return _batches(steps.map(photos).unbatch(), load, _piece(size, replicas))

    def describe(self, error: Exception, step: int) -> Exception:
        """Returns an InputError that names the file and record behind a failed step.

        Args:
          error: what iterating over `dataset` raised.
          step: the step whose batch was asked for.

        Returns:
          `error` itself when no record of the step is at fault.
        """
        numbers = self.photos_of_step(step)[0].numpy()
        return _describe(error, self._index, numbers, self._data.num_classes)


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

    Raises:
      InputError: when there are no records.
    """
    index = records.RecordIndex.open(data.validation_file_pattern)
    size, begin = _slice(batch_size, worker, num_workers)
    batches = -(-len(index) // batch_size)
    numbers = np.arange(batches * batch_size).reshape(batches, batch_size)
    numbers = numbers[:, begin : begin + size].ravel()
    read = _labelled_reader(index, data.num_classes)

    def load(number):
        counts = number < len(index)
        encoded, label = read(tf.where(counts, number, 0))
        image = _resized_window(encoded, data.image_size, _validation_window)
        return image, label, tf.cast(counts, tf.float32)

    photos = tf.data.Dataset.from_tensor_slices(numbers)
    return _batches(photos, load, _piece(size, replicas)), len(index)


def describe_validation(error: Exception, data: DataConfig) -> Exception:
    """Returns an InputError that names the first bad validation record, or `error` itself."""
    index = records.RecordIndex.open(data.validation_file_pattern)
    return _describe(error, index, range(len(index)), data.num_classes)


# --- one photo ----------------------------------------------------------------------------


def _labelled_reader(index: records.RecordIndex, num_classes: int) -> Callable:
    """Returns a function of a record number to encoded photo (string) and label (int32)."""
    read_record = index.reader()

    def read(number):
        photo = records.parse(read_record(number))
        label = photo["label"]
        fault = ["record", number, "has label", label, "and num_classes is", num_classes]
        tf.debugging.Assert((label >= 0) & (label < num_classes), fault)
        return photo["encoded"], tf.cast(label, tf.int32)

    return read


def _validation_window(height, width) -> tf.Tensor:
    return augment.centre_window(height, width, VALIDATION_CROP)


def _resized_window(encoded, size: int, choose: Callable) -> tf.Tensor:
    """Returns float32 (size, size, 3) in [0, 1] of the window that `choose(height, width)` gives.

    Of a JPEG, only the window is decoded.
    """

    def of_jpeg():
        shape = tf.io.extract_jpeg_shape(encoded)
        return images.decode_jpeg_crop(encoded, *tf.unstack(choose(shape[0], shape[1])))

    def of_other():
        image = images.decode(encoded)
        shape = tf.shape(image)
        top, left, height, width = tf.unstack(choose(shape[0], shape[1]))
        return image[top : top + height, left : left + width]

    window = tf.cond(tf.io.is_jpeg(encoded), of_jpeg, of_other)
    window.set_shape((None, None, 3))
    return images.resize(images.to_float(window), size, size)


def _augmented(encoded, data: DataConfig, seed) -> tf.Tensor:
    """Returns a training photo, float32 (S, S, 3)."""
    crop_seed, flip_seed, lighting_seed = augment.split_seed(seed, 3)

    def window(height, width):
        if data.augment_crop:
            return augment.crop_window(height, width, data.crop_area_min, crop_seed)
        return augment.centre_window(height, width)

    image = _resized_window(encoded, data.image_size, window)
    if data.augment_flip:
        image = augment.flip(image, flip_seed)
    if data.augment_lighting:
        image = augment.lighting(image, data.augment_lighting, lighting_seed)
    return tf.ensure_shape(image, (data.image_size, data.image_size, 3))


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


def _batches(photos: tf.data.Dataset, load: Callable, size: int) -> tf.data.Dataset:
    options = tf.data.Options()
    options.deterministic = True
    # The slices of the workers are already made.
    options.experimental_distribute.auto_shard_policy = tf.data.experimental.AutoShardPolicy.OFF
    loaded = photos.map(load, num_parallel_calls=tf.data.AUTOTUNE, deterministic=True)
    return loaded.batch(size, drop_remainder=True).prefetch(2).with_options(options)


# --- errors -------------------------------------------------------------------------------


def _fault(index: records.RecordIndex, number: int, num_classes: int) -> str | None:
    """Returns what is wrong with a record and where it lies; None when nothing is."""
    where = index.where(number)
    try:
        photo = {key: value.numpy() for key, value in records.parse(index.read(number)).items()}
    except InputError as error:
        return str(error)
    except tf.errors.InvalidArgumentError as error:
        return f"{where}: no photo in DELG's schema ({error.message[:200]})"
    where = f"{where} (image {photo['id'].decode(errors='replace')})"
    if photo["label"] < 0:
        return f"{where} has no label; training and validation records need one"
    if photo["label"] >= num_classes:
        return f"{where} has label {photo['label']}, but --num_classes={num_classes}"
    try:
        images.decode(photo["encoded"])
    except tf.errors.InvalidArgumentError:
        return f"{where}: the photo cannot be decoded; mend it or build the records again"
    return None


def _describe(
    error: Exception, index: records.RecordIndex, numbers: Iterable[int], num_classes: int
) -> Exception:
    faults = (_fault(index, int(number), num_classes) for number in numbers)
    return next((InputError(fault) for fault in faults if fault), error)

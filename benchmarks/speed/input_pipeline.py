"""The training input beside its floor, the bare decoding of the same windows of the same JPEGs.

    python benchmarks/speed/input_pipeline.py [--memory]

Photos of 800x600 pixels, about 140 KB each, become augmented crops. Prints one table: CPU time per
photo (all threads of the process), the best of three rounds that time the candidates in turn. The
first two are TensorFlow's own calls: decoding, and all that makes batches of float32 crops of it.
Starting an iterator, once in a run, is not counted. With --memory instead: the memory of the
process while 100,000 small photos pass through.
"""

import argparse
import io
import os
import pathlib
import resource
import tempfile

os.environ.setdefault("TF_CPP_MIN_LOG_LEVEL", "3")
# Otherwise each batch is fresh memory, whose pages the kernel clears at 2 ms per photo.
os.environ.setdefault("TF_CPU_ALLOCATOR_USE_BFC", "1")

import numpy as np
import tensorflow as tf
from PIL import Image
from timing import status

from dolg_tf.data.config import DataConfig
from dolg_tf.data.input import augment, pipeline
from dolg_tf.data.records import tfrecord

HEIGHT, WIDTH, QUALITY = 600, 800, 90
PHOTOS, EPOCHS, BATCH, REPEATS = 256, 5, 32, 3
FLOOR, INPUT = "decode the window (floor)", "training input"


# --- photos -------------------------------------------------------------------------------


def photo(seed: int, height: int, width: int) -> bytes:
    """Returns a JPEG whose spectrum falls off like that of real photos."""
    rng = np.random.default_rng(seed)
    frequency = np.hypot(np.fft.fftfreq(height)[:, None], np.fft.rfftfreq(width)[None])
    amplitude = np.maximum(frequency, 1 / max(height, width)) ** -1.38

    def plane():
        phases = rng.normal(size=(*frequency.shape, 2)) @ [1, 1j]
        values = np.fft.irfft2(phases * amplitude, s=(height, width))
        return values / values.std()

    grey = plane()
    levels = 128 + 42 * np.stack([grey + 0.4 * plane() for _ in range(3)], axis=2)
    out = io.BytesIO()
    picture = Image.fromarray(np.clip(levels, 0, 255).astype(np.uint8))
    picture.save(out, "JPEG", quality=QUALITY, subsampling="4:2:0")
    return out.getvalue()


def write_records(folder: pathlib.Path, count: int, height: int, width: int) -> list[bytes]:
    """Writes four files of `count` records in all and returns the JPEGs by record number."""
    distinct = [photo(seed, height, width) for seed in range(32)]
    jpegs = [distinct[i % 32] for i in range(count)]
    for shard in range(4):
        numbers = range(shard * count // 4, (shard + 1) * count // 4)
        examples = (tfrecord.encode(jpegs[i], str(i), height, width, i % 10) for i in numbers)
        tfrecord.write_shard(folder / tfrecord.shard_name("train", shard, 4), examples)
    return jpegs


def training_input(folder: pathlib.Path, size: int) -> pipeline.TrainingInput:
    data = DataConfig(train_file_pattern=f"{folder}/train-*", num_classes=10, image_size=size)
    return pipeline.TrainingInput(data, BATCH, 0)


# --- speed --------------------------------------------------------------------------------


def cpu_seconds() -> float:
    used = resource.getrusage(resource.RUSAGE_SELF)
    return used.ru_utime + used.ru_stime


class Consumer:
    """Calls that produce the next `photos` photos of a dataset without handing them to Python."""

    def __init__(self, dataset: tf.data.Dataset, photos: int):
        batch = dataset.element_spec[0].shape[0] if isinstance(dataset.element_spec, tuple) else 1
        self._done = iter(dataset.map(lambda *_: 0).batch(photos // batch, drop_remainder=True))

    def __call__(self) -> None:
        next(self._done)


def windows_of(photos: pipeline.TrainingInput) -> tuple[np.ndarray, np.ndarray]:
    """Returns record numbers and windows of an epoch."""
    numbers, windows = [], []
    for step in range(photos.steps_per_epoch):
        of_step, draws = photos.photos_of_step(step)
        numbers.append(of_step)
        for i in range(BATCH):
            one = tf.nest.map_structure(lambda values: values[i], draws)  # noqa: B023
            windows.append(augment.crop_window(HEIGHT, WIDTH, one))
    return np.concatenate(numbers), np.stack(windows)


def candidates(photos: pipeline.TrainingInput, jpegs: list[bytes], size: int) -> dict:
    """Returns datasets by name, which repeat an epoch without end."""
    numbers, windows = windows_of(photos)
    encoded = tf.data.Dataset.from_tensor_slices(([jpegs[i] for i in numbers], windows))
    encoded = encoded.repeat()

    def decode(data, window):
        # Without the faster DCT, whose levels differ from those of other decoders.
        dct = "INTEGER_ACCURATE"
        return tf.image.decode_and_crop_jpeg(data, window, channels=3, dct_method=dct)

    def resize(data, window):
        levels = tf.cast(decode(data, window), tf.float32) / 255.0
        return (tf.ensure_shape(tf.image.resize(levels, (size, size)), (size, size, 3)),)

    def parallel(function):
        return encoded.map(function, num_parallel_calls=tf.data.AUTOTUNE)

    return {
        FLOOR: parallel(decode).prefetch(2),
        "decode, resize and batch": parallel(resize).batch(BATCH, drop_remainder=True).prefetch(2),
        INPUT: photos.dataset(0, 1 << 40),
    }


def measure_speed(folder: pathlib.Path) -> None:
    jpegs = write_records(folder, PHOTOS, HEIGHT, WIDTH)
    print(f"{HEIGHT}x{WIDTH}, {np.mean([len(jpeg) for jpeg in jpegs]) / 1e3:.0f} KB per JPEG\n")
    print("| crop | work | CPU ms per photo | photos/s per core | share of the floor's speed |")
    print("| --- | --- | --- | --- | --- |")
    for size in (512, 224):
        datasets = candidates(training_input(folder, size), jpegs, size)
        seconds = {name: [] for name in datasets}
        for _ in range(REPEATS):
            for name, dataset in datasets.items():
                consume = Consumer(dataset, PHOTOS)
                consume()  # starts threads and fills buffers
                start = cpu_seconds()
                for _ in range(EPOCHS):
                    consume()
                seconds[name].append((cpu_seconds() - start) / PHOTOS / EPOCHS)
        best = {name: min(times) for name, times in seconds.items()}
        for name, time in best.items():
            share = best[FLOOR] / time
            print(f"| {size} | {name} | {1e3 * time:.2f} | {1 / time:.0f} | {share:.2f} |")


# --- memory -------------------------------------------------------------------------------


def measure_memory(folder: pathlib.Path, count: int, size: int) -> list[float]:
    """Returns the resident memory in MB after each twentieth of `count` photos."""
    write_records(folder, 1024, 60, 80)
    photos = training_input(folder, size)
    steps = count // BATCH
    sizes = []
    for step, _ in enumerate(photos.dataset(0, steps), 1):
        if step * 20 // steps > len(sizes):
            sizes.append(status("VmRSS") / 1e6)
    return sizes


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("--memory", action="store_true", help="measure memory instead of speed")
    parser.add_argument("--photos", type=int, default=100_000, help="photos of --memory")
    arguments = parser.parse_args()
    with tempfile.TemporaryDirectory() as folder:
        if arguments.memory:
            for i, size in enumerate(measure_memory(pathlib.Path(folder), arguments.photos, 64)):
                print(f"after {(i + 1) * arguments.photos // 20} photos: {size:.1f} MB")
        else:
            measure_speed(pathlib.Path(folder))


if __name__ == "__main__":
    main()

"""The records builder: photos per second and core, beside the floor, and memory for long lists.

    python benchmarks/speed/records.py

The photos are made on the fly: smooth random fields with texture, of the file size of GLDv2's. The
floor is the work of any builder that checks its photos, without code of our own: reading the bytes,
Pillow's decoding at an eighth of the size, the CRC-32C of the package `crc32c`, and writing the
bytes to a file. Each round times all parts in turn, so that a busy machine slows all of them; times
are CPU time, the best round of several.

Memory is that of the process that reads the lists and plans the record files. It is measured for
lists of different lengths, with empty record files.
"""

import argparse
import io
import json
import pathlib
import subprocess
import sys
import tempfile
import time

import numpy as np
from crc32c import crc32c
from PIL import Image
from timing import peak_memory

from dolg_tf.data.records import build, shards
from dolg_tf.stage import files


def photo_like(rng: np.random.Generator, height: int, width: int) -> bytes:
    """Returns a JPEG (quality 90) of random fields; finer ones are fainter."""
    image = np.zeros((height, width, 3), np.float32)
    for octave in range(1, 9):
        coarse = rng.normal(size=(max(2, 3 * 2**octave // 4), 2**octave + 1, 3))
        planes = [Image.fromarray(coarse[..., i].astype(np.float32)) for i in range(3)]
        fields = [np.asarray(plane.resize((width, height), Image.BICUBIC)) for plane in planes]
        image += 0.8**octave * np.stack(fields, axis=-1)
    image = 120 + 55 * (image - image.mean()) / image.std()
    out = io.BytesIO()
    Image.fromarray(np.clip(image, 0, 255).astype(np.uint8)).save(out, "JPEG", quality=90)
    return out.getvalue()


def decode_small(data: bytes) -> None:
    with Image.open(io.BytesIO(data)) as image:
        image.draft(None, (image.width // 8, image.height // 8))
        image.load()


def write_plain(path: pathlib.Path, data: list[bytes]) -> None:
    with path.open("wb") as file:
        for jpeg in data:
            file.write(jpeg)


def photo_id(number: int) -> str:
    return f"{number * 0x9E3779B97F4A7C15 % 2**64:016x}"


def write_photos(folder: pathlib.Path, photos: int, distinct: int) -> list[shards.Photo]:
    """Writes photos of 800x600 in the layout of GLDv2, `distinct` of them different."""
    rng, listed = np.random.default_rng(0), []
    data = [photo_like(rng, 600, 800) for _ in range(distinct)]
    for number in range(photos):
        name = photo_id(number)
        path = folder.joinpath(*name[:3], f"{name}.jpg")
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(data[number % distinct])
        listed.append(shards.Photo(name, str(path), number))
    return listed


def floor_parts(listed: list[shards.Photo], folder: pathlib.Path) -> dict:
    """Returns {name: function} of the work of any builder that checks its photos."""
    paths = [pathlib.Path(photo.path) for photo in listed]
    data = [path.read_bytes() for path in paths]
    return {
        "read the file": lambda: [path.read_bytes() for path in paths],
        "decode at an eighth": lambda: [decode_small(jpeg) for jpeg in data],
        "checksum": lambda: [crc32c(jpeg) for jpeg in data],
        "write": lambda: write_plain(folder / "plain", data),
    }


def time_parts(folder: pathlib.Path, photos: int, distinct: int, repeats: int) -> None:
    listed = write_photos(folder, photos, distinct)
    parts = floor_parts(listed, folder)
    parts["all (`write_shard`)"] = lambda: shards.write_shard(
        shards.Shard(folder / "x", listed, shards.Rule(strict=True))
    )
    times = {name: [] for name in parts}
    for repeat in range(repeats + 1):
        for name, part in parts.items():
            start = time.process_time()
            part()
            if repeat:  # the first round fills caches
                times[name].append(1e3 * (time.process_time() - start) / photos)
    best = {name: min(values) for name, values in times.items()}
    whole = best.pop("all (`write_shard`)")
    floor = sum(best.values())
    rows = {**best, "EXIF, record, frame": whole - floor, "all": whole, "floor": floor}
    kilobytes = np.mean([pathlib.Path(photo.path).stat().st_size for photo in listed]) / 1000
    print(f"{photos} photos of 800x600, {kilobytes:.0f} kB on average\n")
    print("| part | CPU ms per photo | share | photos/s per core |")
    print("| --- | --- | --- | --- |")
    for name, spent in rows.items():
        speed = f"{1e3 / spent:.0f}" if name in ("all", "floor") else ""
        print(f"| {name} | {spent:.2f} | {spent / whole:.0%} | {speed} |")


def write_list(path: pathlib.Path, photos: int) -> None:
    """Writes a train.csv with twenty photos per landmark."""
    with path.open("w") as file:
        file.write("id,url,landmark_id\n")
        for number in range(photos):
            url = f"http://example.org/photo_{number}.jpg"
            file.write(f"{photo_id(number)},{url},{number // 20}\n")


def measure(folder: pathlib.Path) -> None:
    """Prints seconds and peak memory of a build with empty record files, as JSON."""

    def write_nothing(shard: shards.Shard) -> dict:
        shard.path.write_bytes(b"")
        for photo in shard.photos:
            assert photo.path
        result = {"records": len(shard.photos), "kinds": {}, "left_out": []}
        files.write_json(f"{shard.path}.json", result)
        return result

    shards.write_shard = write_nothing
    before = peak_memory()
    options = {"train_csv": str(folder / "train.csv"), "images_dir": str(folder)}
    settings = build.RecordsConfig(**options, output_dir=str(folder / "out"), processes=1)
    start = time.process_time()
    build.build_records(settings)
    peak = peak_memory()
    print(json.dumps({"seconds": time.process_time() - start, "before": before, "peak": peak}))


def measure_memory(lengths: list[int]) -> None:
    print("\n| listed photos | CPU s | MB before | MB at the peak | bytes per photo |")
    print("| --- | --- | --- | --- | --- |")
    for photos in lengths:
        with tempfile.TemporaryDirectory() as name:
            folder = pathlib.Path(name)
            write_list(folder / "train.csv", photos)
            command = [sys.executable, __file__, f"--measure={folder}"]
            done = subprocess.run(command, check=True, capture_output=True, text=True)
        found = json.loads(done.stdout)
        grown = found["peak"] - found["before"]
        print(
            f"| {photos:,} | {found['seconds']:.1f} | {found['before'] / 1e6:.0f} | "
            f"{found['peak'] / 1e6:.0f} | {grown / photos:.0f} |"
        )


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__.split("\n")[0], formatter_class=argparse.ArgumentDefaultsHelpFormatter
    )
    parser.add_argument("--photos", type=int, default=200, help="photos per round")
    parser.add_argument("--distinct", type=int, default=10, help="different ones among them")
    parser.add_argument("--repeats", type=int, default=7, help="rounds")
    parser.add_argument(
        "--lists",
        type=int,
        nargs="*",
        default=[10_000, 100_000, 1_000_000],
        help="lengths of the lists whose memory is measured; 4132914 is GLDv2's",
    )
    parser.add_argument("--measure", default="", help=argparse.SUPPRESS)
    arguments = parser.parse_args()
    if arguments.measure:
        measure(pathlib.Path(arguments.measure))
        return
    with tempfile.TemporaryDirectory() as name:
        time_parts(pathlib.Path(name), arguments.photos, arguments.distinct, arguments.repeats)
    measure_memory(arguments.lists)


if __name__ == "__main__":
    main()

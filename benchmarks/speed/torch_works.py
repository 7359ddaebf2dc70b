"""The works that `beside_torch.py` times, and the process that does one of them on one side.

    python benchmarks/speed/torch_works.py r50_one weights FOLDER
    python benchmarks/speed/torch_works.py r50_one PyTorch FOLDER

"weights", "photos" and "extraction" write a file or a folder. "PyTorch" and "ours" print what the
first calls give, then the seconds of a call per line of the input, and at its end the peak of
their memory.
"""

import argparse
import dataclasses
import json
import os
import pathlib
import shutil
import sys
import time
from collections.abc import Callable

os.environ.setdefault("TF_ENABLE_ONEDNN_OPTS", "1")
os.environ.setdefault("TF_CPP_MIN_LOG_LEVEL", "3")

import numpy as np
from stage_cases import draw_photos
from timing import peak_memory

from dolg_tf.data.scales import SCALE_SETS

_FIVE = SCALE_SETS["five"]


@dataclasses.dataclass(frozen=True, kw_only=True)
class Work:
    """What both sides do.

    Attributes:
      title: its name in the table.
      kind: "inference", "training" or "extraction".
      photos: how many, in one call or in one folder.
      size: their side, pixels.
      backbone, scales: of the network.
      classes: of the head.
      multi_atrous: whether the network has it.
      compiled: whether PyTorch's network is compiled for photos of this size.
    """

    title: str
    kind: str
    photos: int = 1
    size: int = 512
    backbone: str = "resnet50"
    scales: tuple[float, ...] = (1.0,)
    classes: int = 81313
    multi_atrous: bool = True
    compiled: bool = False


def _inference(backbone: str, short: str) -> dict[str, Work]:
    name = short.upper()
    common = {"kind": "inference", "backbone": backbone}
    works = {
        f"{short}_one": Work(title=f"{name}, one photo", **common),
        f"{short}_five": Work(title=f"{name}, one photo, five scales", scales=_FIVE, **common),
        f"{short}_batch": Work(title=f"{name}, 8 photos", photos=8, **common),
    }
    for key in (f"{short}_one", f"{short}_batch"):
        title = f"{works[key].title}, PyTorch compiled"
        works[f"{key}_compiled"] = dataclasses.replace(works[key], title=title, compiled=True)
    return works


_START_TO_END = {"kind": "extraction"}
WORKS = {
    **_inference("resnet50", "r50"),
    **_inference("resnet101", "r101"),
    "training": Work(
        title="training step, R50, 4 x 256 px, 81,313 classes", kind="training", photos=4, size=256
    ),
    "extract_one": Work(title="extraction of one photo, R50", **_START_TO_END),
    "extract_five": Work(
        title="extraction of 16 photos, R50, five scales", photos=16, scales=_FIVE, **_START_TO_END
    ),
}


def quick(work: Work) -> Work:
    """Returns the same with the smallest network and photos that the authors' form has."""
    small = {"size": 64, "photos": min(work.photos, 2), "classes": 100}
    return dataclasses.replace(work, backbone="resnet50", multi_atrous=False, **small)


@dataclasses.dataclass(frozen=True)
class Files:
    """The files of a work in a folder that works share."""

    folder: pathlib.Path
    work: Work

    @property
    def weights(self) -> pathlib.Path:
        return self.folder / f"{self.work.backbone}.pth"

    @property
    def model(self) -> pathlib.Path:
        return self.folder / f"{self.work.backbone}_model"

    @property
    def saved_model(self) -> pathlib.Path:
        return self.folder / f"{self.work.backbone}_saved_model"

    @property
    def photos(self) -> pathlib.Path:
        return self.folder / f"photos_{self.work.photos}"

    @property
    def extracted(self) -> pathlib.Path:
        return self.folder / "extracted.npy"


# --- what is timed ----------------------------------------------------------------------------


def torch_inference(files: Files) -> Callable:
    import torch_side

    return torch_side.describer(files.weights, files.work.compiled)


def our_inference(files: Files) -> Callable:
    from dolg_tf.runtime.session import CppSession

    session = CppSession(files.saved_model)

    def describe(photos, scales):
        given = {"images": photos, "scales": np.asarray(scales, np.float32)}
        return session.run("images", given)["descriptors"]

    return describe


def _options(work: Work):
    from dolg_tf.training.config import TrainingConfig

    # A small rate, since the photos are noise; without warm-up, in which it would be near 0.
    return TrainingConfig(logdir="", batch_size=work.photos, warmup_epochs=0, initial_lr=1e-3)


def _batch(work: Work) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Returns photos as floats in [0, 1], labels and the initial class head."""
    rng = np.random.default_rng(0)
    photos = rng.random((work.photos, work.size, work.size, 3), np.float32)
    labels = rng.integers(0, work.classes, work.photos).astype(np.int32)
    return photos, labels, rng.standard_normal((work.classes, 512), np.float32) / 16


def torch_training(files: Files) -> Callable[[], float]:
    import torch_side

    return torch_side.training_step(files.weights, *_batch(files.work), _options(files.work))


def our_training(files: Files) -> Callable[[], float]:
    import tensorflow as tf

    from dolg_tf.training.distribution import make_strategy
    from dolg_tf.training.trainer import Trainer
    from dolg_tf.weights import official
    from dolg_tf.weights.files.tensors import open_tensors

    work, state = files.work, open_tensors(files.weights).tensors
    model, many = official.detect(state), 1_000_000  # steps per epoch: the rate stays as it is
    trainer = Trainer(model, _options(work), work.classes, many, make_strategy())
    official.load_state_dict(trainer.network, state)
    photos, labels, centres = _batch(work)
    trainer.head.kernel.assign(centres)
    piece = (tf.constant(photos), tf.constant(labels), tf.ones(work.photos))
    return lambda: float(trainer.train_step((piece,))[0])


_PREPARE = {
    ("PyTorch", "inference"): torch_inference,
    ("ours", "inference"): our_inference,
    ("PyTorch", "training"): torch_training,
    ("ours", "training"): our_training,
}


def serve(side: str, files: Files) -> None:
    """Does a call of a work for each line of the input."""
    work, call = files.work, _PREPARE[side, files.work.kind](files)
    arguments = ()
    if work.kind == "inference":
        shape = (work.photos, work.size, work.size, 3)
        photos = np.random.default_rng(1).integers(0, 256, shape, dtype=np.uint8)
        arguments = (photos, work.scales)
        answer = call(*arguments).tolist()
    else:
        answer = [call() for _ in range(3)]
    print(json.dumps(answer), flush=True)
    for _ in sys.stdin:
        clock, cpu = time.perf_counter(), time.process_time()
        call(*arguments)
        print(json.dumps([time.perf_counter() - clock, time.process_time() - cpu]), flush=True)
    print(peak_memory(), flush=True)


# --- files --------------------------------------------------------------------------------------


def write_weights(files: Files) -> None:
    import torch_side

    torch_side.write_weights(files.work.backbone, files.work.multi_atrous, files.weights)


def write_photos(files: Files) -> None:
    drawn = draw_photos(files.folder / "drawn", max(files.work.photos, 2), files.work.size)
    files.photos.mkdir()
    for path in sorted(drawn.rglob("*.jpg"))[: files.work.photos]:
        shutil.move(path, files.photos)
    shutil.rmtree(files.folder / "drawn")


def extract(files: Files) -> None:
    """Does on PyTorch's side what `dolg extract` does on ours."""
    import torch_side

    torch_side.extract(files.weights, files.photos, files.work.scales, files.extracted)


_WRITE = {"weights": write_weights, "photos": write_photos, "extraction": extract}


def command(name: str, what: str, folder: pathlib.Path, small: bool) -> list[str]:
    """Returns the command of this script for a name of `WORKS`."""
    return [sys.executable, __file__, name, what, str(folder), *(["--quick"] if small else [])]


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("name", choices=WORKS)
    parser.add_argument("what", choices=("PyTorch", "ours", *_WRITE))
    parser.add_argument("folder", type=pathlib.Path)
    parser.add_argument("--quick", action="store_true", help="smallest sizes, as a trial")
    arguments = parser.parse_args()
    work = WORKS[arguments.name]
    files = Files(arguments.folder, quick(work) if arguments.quick else work)
    if arguments.what in _WRITE:
        _WRITE[arguments.what](files)
    else:
        serve(arguments.what, files)


if __name__ == "__main__":
    main()

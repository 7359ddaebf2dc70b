"""Ways to run a network: its cost alone in a process, which imports no more than it needs.

    python benchmarks/speed/inference_runs.py NAME FOLDER SIZE SCALES

`bench_inference.py` writes the folder and starts this once for each row of its second table.
"""

import json
import os
import pathlib
import sys
import time

os.environ.setdefault("TF_ENABLE_ONEDNN_OPTS", "1")
os.environ.setdefault("TF_CPP_MIN_LOG_LEVEL", "3")

import numpy as np
from timing import peak_memory

from dolg_tf.data.scales import SCALE_SETS
from dolg_tf.runtime.session import CppSession

SCALES = SCALE_SETS["five"]


# --- the candidates: path -> function of uint8 (B, H, W, 3) and scales --------------------


def keras_call(folder: pathlib.Path):
    import tensorflow as tf

    from dolg_tf.modeling.model_dir import load_network
    from dolg_tf.serving.graph.pyramid import multi_scale

    network = load_network(str(folder / "model")).network
    photos = tf.TensorSpec([None, None, None, 3], tf.uint8)
    scales = tf.TensorSpec([None], tf.float32)
    return tf.function(
        lambda photos, scales: multi_scale(network, photos, scales),
        input_signature=[photos, scales],
        autograph=False,
    )


def saved_model(folder: pathlib.Path, name: str = "saved_model"):
    import tensorflow as tf

    loaded = tf.saved_model.load(str(folder / name))
    images_signature = loaded.signatures["images"]

    def call(photos, scales, _alive=loaded):  # the variables live as long as the model
        return images_signature(images=tf.constant(photos), scales=tf.constant(scales))

    return call


def cpp_loader(folder: pathlib.Path, name: str = "saved_model"):
    session = CppSession(folder / name)
    return lambda photos, scales: session.run("images", {"images": photos, "scales": scales})


def onnx(folder: pathlib.Path):
    import onnxruntime
    import tensorflow as tf

    from dolg_tf.data import images

    session = onnxruntime.InferenceSession(folder / "model.onnx")

    def call(photos, scales):
        floats, rows = images.to_float(tf.constant(photos)), []
        for scale in scales:
            size = images.scaled_size(*photos.shape[1:3], scale)
            rows += session.run(None, {"image": images.resize(floats, *size).numpy()})
        return np.sum(rows, 0)

    return call


CANDIDATES = {
    "Keras call": keras_call,
    "SavedModel, Python": saved_model,
    "SavedModel, C++ loader": cpp_loader,
    "bfloat16, Python": lambda folder: saved_model(folder, "bfloat16"),
    "bfloat16, C++ loader": lambda folder: cpp_loader(folder, "bfloat16"),
    "ONNX": onnx,
}
FILES = {"Keras call": "model", "bfloat16": "bfloat16", "ONNX": "model.onnx"}


def megabytes() -> int:
    return peak_memory() >> 20


def alone(name: str, folder: pathlib.Path, size: int, count: int) -> dict:
    """Loads and runs one candidate, in a process that does nothing else."""
    before, start = megabytes(), time.perf_counter()
    call = CANDIDATES[name](folder)
    load, start = time.perf_counter() - start, time.perf_counter()
    photos = np.zeros((1, size, size, 3), np.uint8)
    scales = np.ones(1, np.float32) if count == 1 else np.asarray(SCALES, np.float32)
    call(photos, scales)
    first, loaded = time.perf_counter() - start, megabytes()
    for _ in range(2):
        call(photos, scales)
    return {"before": before, "load": load, "first": first, "loaded": loaded, "peak": megabytes()}


def main() -> None:
    name, folder, size, count = sys.argv[1:]
    print(json.dumps(alone(name, pathlib.Path(folder), int(size), int(count))))


if __name__ == "__main__":
    main()

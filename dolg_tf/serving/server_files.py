"""Files that TF Serving reads beside the graph: warm-up requests and batching parameters.

Reference: https://www.tensorflow.org/tfx/serving/saved_model_warmup,
https://github.com/tensorflow/serving/tree/master/tensorflow_serving/batching.
"""

import pathlib

import numpy as np
import tensorflow as tf

WARMUP = pathlib.Path("assets.extra") / "tf_serving_warmup_requests"
BATCHING = "batching_params.pbtxt"

# Height and width in pixels of the warm-up photos.
_SIZES = ((480, 640), (1024, 768))

# The network takes one photo at a time, so photos in one batch would only wait for each other.
# Requests are split into single photos, which the threads take in turn.
_BATCHING_PARAMS = """\
# Read with --enable_batching --enable_per_model_batching_parameters, or given to
# --batching_parameters_file. Only for servers of `serving_default`: see docs/serving.md.
max_batch_size { value: 64 }
enable_large_batch_splitting { value: true }
max_execution_batch_size { value: 1 }
batch_timeout_micros { value: 0 }
max_enqueued_batches { value: 256 }
# Photos at work at once; the server takes this line from --batching_parameters_file alone.
num_batch_threads { value: 2 }
"""


def write_server_files(path: pathlib.Path, images: bool = True) -> None:
    """Writes the warm-up requests and the batching parameters.

    Args:
      path: the SavedModel directory.
      images: whether it has the signature `images`.
    """
    (path / BATCHING).write_text(_BATCHING_PARAMS, encoding="utf-8")
    warmup = path / WARMUP
    warmup.parent.mkdir(exist_ok=True)
    photos = [_photo(*size) for size in _SIZES]
    with tf.io.TFRecordWriter(str(warmup)) as writer:
        for photo in photos:
            encoded = tf.io.encode_jpeg(photo).numpy()
            writer.write(_prediction_log("serving_default", image_bytes=[encoded]))
        if not images:
            return
        # As many scales as photos: a server that batches accepts no other request, and a model
        # whose warm-up fails is not served.
        scales = np.ones([1], np.float32)
        writer.write(_prediction_log("images", images=photos[0][None], scales=scales))


def _photo(height: int, width: int) -> np.ndarray:
    """Returns a photo of coloured clouds, uint8 RGB (height, width, 3), the same each time."""
    coarse = np.random.default_rng(0).random((height // 32, width // 32, 3), np.float32)
    return tf.cast(tf.image.resize(255 * coarse, [height, width]), tf.uint8).numpy()


def _prediction_log(signature: str, **inputs) -> bytes:
    """Returns a `tensorflow.serving.PredictionLog` of one request, serialised.

    Written by hand, since the classes are in a package that nothing else here needs. Field numbers
    are those of prediction_log.proto, predict.proto and model.proto.
    """
    request = _field(1, _field(3, signature.encode()))  # model_spec { signature_name }
    for name, value in inputs.items():
        tensor = tf.make_tensor_proto(value).SerializeToString()
        request += _field(2, _field(1, name.encode()) + _field(2, tensor))  # inputs { key, value }
    return _field(6, _field(1, request))  # predict_log { request }


def _field(number: int, payload: bytes) -> bytes:
    """Returns a length-delimited field of a protocol buffer: key, length and payload."""
    encoded, length = bytearray([number << 3 | 2]), len(payload)
    while length > 127:
        encoded.append(length & 127 | 128)
        length >>= 7
    encoded.append(length)
    return bytes(encoded) + payload

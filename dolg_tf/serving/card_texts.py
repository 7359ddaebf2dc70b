"""The prose and the code of model cards that depend on nothing but the kind of export."""

_PHOTO = (
    'tf.io.decode_jpeg(tf.io.read_file("photo.jpg"), channels=3, dct_method="INTEGER_ACCURATE")'
)
_TENSORFLOW = f"""import tensorflow as tf

model = tf.saved_model.load("NAME")
photo = {_PHOTO}
"""
_NUMPY = """import numpy as np
from PIL import Image
RUNTIME

photo = np.asarray(Image.open("photo.jpg").convert("RGB"), np.float32)[None] / 255
"""
_ROWS = """rows = tf.math.l2_normalize({call}, -1)
descriptor = tf.math.l2_normalize(tf.reduce_sum(rows, 0), -1)  # (D,)
"""
USE = {
    "serving": (
        _TENSORFLOW
        + """found = model.signatures["images"](images=photo[None], scales=tf.constant(SCALES))
descriptor = found["descriptors"][0]  # (D,)
"""
    ),
    "delg": (
        _TENSORFLOW
        + """found = model.signatures["serving_default"](
    input_image=photo,
    input_scales=tf.constant(SCALES),
    input_global_scales_ind=tf.range(len(SCALES)),
)
"""
        + _ROWS.format(call='found["global_descriptors"]')
    ),
    "kaggle": (
        _TENSORFLOW
        + """descriptor = model.signatures["serving_default"](photo)["global_descriptor"]  # (D,)
"""
    ),
    "tf1": (
        _TENSORFLOW
        + """describe = model.prune(["input_image:0", "input_scales:0"], ["global_descriptors:0"])
"""
        + _ROWS.format(call="describe(photo, tf.constant(SCALES))[0]")
    ),
    "onnx": (
        _NUMPY.replace("RUNTIME", "import onnxruntime")
        + """session = onnxruntime.InferenceSession("NAME")
descriptor = session.run(["descriptor"], {"image": photo})[0][0]  # (D,)
"""
    ),
    "litert": (
        _NUMPY.replace("RUNTIME", "from ai_edge_litert.interpreter import Interpreter")
        + """describe = Interpreter("NAME").get_signature_runner("serving_default")
descriptor = describe(image=photo)["descriptor"][0]  # (D,)
"""
    ),
    "model": """from dolg_tf.serving.saved_model import ExportConfig, export_saved_model

export_saved_model(ExportConfig(model_dir="NAME", output="saved_model"))
""",
}
BATCHES = """
Photos of a batch have one size. At several scales: resize the floats (bilinear, no antialias, to
round(side x scale)), take the mean of the descriptors, and give it unit norm again.
"""
LIMITS = """
- It tells landmarks apart: buildings, monuments, scenery. Of other things, and of people, its
  descriptors say nothing that was tested.
- EXIF rotation is not applied: a photo that is stored on its side is described on its side.
- Descriptors of two models, or of two exports with another whitening, cannot be compared.
- Photos of places that the training photos do not cover are described less well, and which
  places those photos cover is not even over the world.
"""
LICENCE = """
The software that made this model is under Apache-2.0. No licence of the weights is recorded: it is
for whoever publishes them to state, with a view to the photos and to the weights that training
started from (each photo of Google Landmarks v2 has its own licence, its labels are under CC BY 4.0;
the authors' code of DOLG is under MIT).
"""

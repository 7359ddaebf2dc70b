"""The export modes and the configuration of an export.

No TensorFlow here, so that `--help` and a refused option answer at once. What a mode does is in
`dolg_tf/serving/modes/`, in the file of its name.
"""

import dataclasses
import math
from collections.abc import Mapping

from dolg_tf.data.scales import LOCAL_SCALES, SCALE_SETS
from dolg_tf.modeling.config import CheckpointConfig, NetworkConfig
from dolg_tf.stage import config as configs
from dolg_tf.stage.config import InputError
from dolg_tf.weights import published

SUBMISSION = "submission.zip"


@dataclasses.dataclass(frozen=True, kw_only=True)
class Mode:
    """What the command line knows of an export mode.

    Args:
      words: what the mode is for, as `--help` prints it.
      takes: the options of `ExportConfig` that it takes and some other mode does not.
      remedies: by option, why the mode does not take it and what to do instead, where the
        general remedy does not do.
      suffix: of the file that it writes; empty: it writes the directory of a SavedModel.
      packages: import names of the packages in the extra of the mode's name.
      tensorflow: the oldest release of TensorFlow that was seen to load its output and to answer
        all signatures as the latest; empty: it is not for TensorFlow.
    """

    words: str
    takes: tuple[str, ...] = ()
    remedies: Mapping[str, str] = dataclasses.field(default_factory=dict)
    suffix: str = ""
    packages: tuple[str, ...] = ()
    tensorflow: str = ""


_ROW_PER_SCALE = {
    "whitening": "it gives one row per scale, and whitening belongs after their mean; give it to "
    "DELF's extractor (use_pca in its configuration), or choose --mode=serving or kaggle"
}

_LOCAL = ("local_scales", "local_threshold", "local_reduction")

MODES: dict[str, Mode] = {
    "serving": Mode(
        words="a SavedModel for extraction, report, demo and TF Serving",
        takes=("scales", "max_pixels", "upright", "precision", "whitening", *_LOCAL),
        tensorflow="2.4",
    ),
    "delg": Mode(
        words="a SavedModel for DELF's and DELG's extractor",
        takes=("scales", "precision", "features", "iou", *_LOCAL),
        remedies=_ROW_PER_SCALE,
        tensorflow="2.2",
    ),
    "kaggle": Mode(
        words="a SavedModel for the scorer of Landmark Retrieval 2020",
        takes=("scales", "precision", "whitening", "zip"),
        tensorflow="2.2",
    ),
    "tf1": Mode(
        words="delg's signature as named tensors of a TF1-style SavedModel, for .prune",
        takes=("scales", "precision", "features", "iou", *_LOCAL),
        remedies=_ROW_PER_SCALE,
        tensorflow="2.2",
    ),
    "search": Mode(
        words="a SavedModel that holds an index: encoded photos in, the nearest photos out",
        takes=(
            *("scales", "max_pixels", "upright", "precision", "whitening"),
            *("index", "k", "index_precision", "labels_csv"),
        ),
        tensorflow="2.4",
    ),
    "onnx": Mode(
        words="an ONNX file",
        suffix=".onnx",
        packages=("onnx", "tf2onnx", "onnxruntime"),
    ),
    "litert": Mode(
        words="a LiteRT (TensorFlow Lite) file",
        takes=("quantize",),
        suffix=".tflite",
        packages=("ai_edge_litert",),
    ),
}

_BFLOAT16 = "2.10"  # older ones fail in its convolutions on some processors


def least_tensorflow(mode: str, precision: str) -> str:
    """Returns the oldest release of TensorFlow that is known to run an export."""
    return MODES[mode].tensorflow if precision == "float32" else _BFLOAT16


@dataclasses.dataclass(frozen=True, kw_only=True)
class ExportConfig(NetworkConfig):
    """Which network is exported, and how."""

    model_dir: str = configs.option(
        "run directory or model directory; empty: the ready network of --backbone_weights", ""
    )
    backbone_weights: str = configs.option(
        "instead of --model_dir, the ready network of these ImageNet weights, which describes with "
        "all numbers of its last map and needs no training: efficientnet_lite0 or "
        "efficientnet_lite2 (pip packages), or a ResNet or EfficientNet preset of KerasHub",
        "",
    )
    output: str = configs.option(
        "directory of the SavedModel, for TF Serving NAME/VERSION; of modes onnx and litert the "
        "file, with the model card beside it as FILE.md"
    )
    mode: str = configs.option(
        "; ".join(f"{name}: {mode.words}" for name, mode in MODES.items()),
        "serving",
        choices=tuple(MODES),
    )
    scales: tuple[float, ...] = configs.option(
        "mode kaggle: the scales inside the model; mode serving: those of encoded photos; mode "
        "search: left out, since they are those of the index; all SavedModels: the default scales, "
        "stored beside the model",
        SCALE_SETS["five"],
        unit="of the photo's sides",
    )
    max_pixels: int = configs.option(
        "modes serving and search: an encoded photo that is larger is not decoded and gets status "
        "2, and so does a JPEG of more than 32 scans",
        2**22,
        unit="pixels",
    )
    upright: bool = configs.option(
        "mode serving: turn encoded photos by their EXIF orientation; pixels are taken as they "
        "are; mode search: as the photos of the index were",
        True,
    )
    precision: str = configs.option(
        "SavedModels: of the convolutions; pooling, fusion and the last layers stay in float32",
        "float32",
        choices=("float32", "bfloat16"),
    )
    whitening: str = configs.option(
        "modes serving, kaggle and search: .npz of mean (D,) and projection (D, K), applied to the "
        "descriptor inside the model",
        "",
    )
    index: str = configs.option("mode search: the index (a directory) that the model holds", "")
    k: int = configs.option("mode search: photos found per photo", 10)
    index_precision: str = configs.option(
        "mode search: of the descriptors in the model; float16 takes half the memory and more time",
        "float32",
        choices=("float32", "float16"),
    )
    labels_csv: str = configs.option(
        "mode search: CSV with the columns path (or id) and landmark, for the output landmarks; "
        "photos that are not listed have none",
        "",
    )
    features: str = configs.option(
        "modes delg and tf1: what the signature gives. global: a descriptor per scale; local: the "
        "local features; both: both, the network running once at each scale",
        "global",
        choices=("global", "local", "both"),
    )
    local_scales: tuple[float, ...] = configs.option(
        "modes serving, delg and tf1: the default scales of local features, stored beside the "
        f"model; empty: {','.join(map(str, LOCAL_SCALES))}, DELG's, and those of its authors for "
        "HOW",
        (),
        unit="of the photo's sides",
    )
    local_threshold: float | None = configs.option(
        "modes serving, delg and tf1: the default of the least strength of a local feature, stored "
        "beside the model; without it, that stored with the weights, or 0 if there is none",
        None,
    )
    local_reduction: str = configs.option(
        "modes serving, delg and tf1: .npz of mean (D,) and projection (D, K), as `dolg whiten fit "
        "--local` writes it, applied to the local features inside the model",
        "",
    )
    iou: float = configs.option(
        "modes delg and tf1: of two local features whose regions overlap by more (intersection "
        "over union), the weaker is dropped; 1: none",
        1.0,
    )
    zip: bool = configs.option(
        f"mode kaggle: also write {SUBMISSION} inside the output, ready to be submitted", False
    )
    quantize: str = configs.option(
        "mode litert: none: float32; float16: weights of half the size; dynamic: int8 weights, a "
        "quarter of the size, and activations quantised at run time",
        "none",
        choices=("none", "float16", "dynamic"),
    )
    report: str = configs.option(
        "report.json of an evaluation of this model, for the scores in its card; empty: not "
        "measured",
        "",
    )
    overwrite: bool = configs.option("replace an existing output", False)

    def __post_init__(self):
        if self.mode not in MODES:
            raise InputError(f"--mode={self.mode} must be one of {', '.join(MODES)}")
        self._check_source()
        self._refuse_options_of_other_modes()
        for name in ("scales", "local_scales"):
            scales = getattr(self, name)
            missing = not scales and name == "scales"
            if missing or not all(0 < scale < float("inf") for scale in scales):
                raise InputError(f"--{name}={scales} must be one or more numbers above 0")
        self._check_local()
        configs.at_least(self, max_pixels=1, k=1)
        if self.mode == "search" and not self.index:
            raise InputError("--mode=search needs --index, the index that the model is to hold")
        if not self.output.endswith(MODES[self.mode].suffix):
            raise InputError(
                f"--output={self.output} must end in {MODES[self.mode].suffix} with "
                f"--mode={self.mode}"
            )

    @property
    def source(self) -> str:
        """What the network comes from, in words."""
        return self.model_dir or f"ImageNet's {self.backbone_weights}"

    def _check_source(self) -> None:
        if bool(self.model_dir) == bool(self.backbone_weights):
            given = "both are" if self.model_dir else "neither is"
            raise InputError(
                f"the network is that of --model_dir or of --backbone_weights, but {given} given; "
                "give one of the two"
            )
        if self.backbone_weights:
            published.backbone_of(self.backbone_weights)
            for option in ("checkpoint", "weights"):
                if getattr(self, option) != getattr(CheckpointConfig(), option):
                    raise InputError(
                        f"--{option}={getattr(self, option)}: only a run has one, not "
                        f"--backbone_weights={self.backbone_weights}; omit it"
                    )

    @property
    def gives_local(self) -> bool:
        """Whether a signature gives local features at several scales."""
        takes = MODES[self.mode].takes
        return "local_scales" in takes and ("features" not in takes or self.features != "global")

    def _check_local(self) -> None:
        if self.local_threshold is not None and not math.isfinite(self.local_threshold):
            raise InputError(f"--local_threshold={self.local_threshold} must be a finite number")
        if not 0 <= self.iou <= 1:
            raise InputError(f"--iou={self.iou} must be from 0 to 1")
        if self.gives_local:
            return
        for field in dataclasses.fields(self):
            given = getattr(self, field.name) != field.default
            if field.name in (*_LOCAL, "iou") and given:
                raise InputError(
                    f"--{field.name} with --features=global: there are no local features; give "
                    "--features=local or both"
                )

    def _refuse_options_of_other_modes(self) -> None:
        for field in dataclasses.fields(self):
            name = field.name
            takers = [mode for mode in MODES if name in MODES[mode].takes]
            if not takers or self.mode in takers or getattr(self, name) == field.default:
                continue
            takes = "which takes it" if len(takers) == 1 else "which take it"
            general = f"leave it out, or choose --mode={' or '.join(takers)}, {takes}"
            remedy = MODES[self.mode].remedies.get(name, general)
            raise InputError(f"--{name} with --mode={self.mode}: {remedy}")

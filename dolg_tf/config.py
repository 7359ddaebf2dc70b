"""Stage configurations: frozen dataclasses that are at once command-line flags and JSON.

No TensorFlow here, so that `--help` and a mistyped flag answer at once.
"""

import dataclasses
import logging
import os
import sys
import textwrap
import typing
from collections.abc import Callable, Sequence

from absl import flags


class InputError(ValueError):
    """Bad input that the user can mend: commands print it as one line, without a traceback."""


def option(help: str, default=dataclasses.MISSING, *, unit: str = "", choices: Sequence[str] = ()):
    """Returns a dataclass field that is also a flag.

    Args:
      help: what it does, as `--help` prints it.
      default: the default value; without one the flag is required.
      unit: of the value, as `--help` prints it ("pixels", "steps").
      choices: the values a string option may take.
    """
    metadata = {"help": help, "unit": unit, "choices": tuple(choices)}
    return dataclasses.field(default=default, metadata=metadata)


@dataclasses.dataclass(frozen=True, kw_only=True)
class Preprocessing:
    """What the network does to float32 RGB in [0, 1] before its first convolution.

    `(x[channel_order] - mean) / std`; mean and std are in that channel order.
    """

    channel_order: str = "rgb"
    mean: tuple[float, ...] = (0.485, 0.456, 0.406)
    std: tuple[float, ...] = (0.229, 0.224, 0.225)

    def __post_init__(self):
        if self.channel_order not in ("rgb", "bgr"):
            raise InputError(f"channel_order is {self.channel_order!r}; it must be rgb or bgr")
        if len(self.mean) != 3 or len(self.std) != 3 or min(self.std) <= 0:
            raise InputError(f"mean {self.mean} and std {self.std} must be 3 numbers, std above 0")


# What the authors' network expects (facts: trained on BGR input).
OFFICIAL_PREPROCESSING = Preprocessing(
    channel_order="bgr", mean=(0.406, 0.456, 0.485), std=(0.225, 0.224, 0.229)
)


@dataclasses.dataclass(frozen=True, kw_only=True)
class DolgConfig:
    """The network, without its class head."""

    backbone: str = option(
        "resnet18, resnet34, resnet50, resnet101, resnet152 or resnet17_small", "resnet50"
    )
    gem_p: float = option("exponent of the GeM pooling of the global branch", 3.0)
    train_gem_p: bool = option("train the GeM exponent, as the authors' code does", False)
    multi_atrous: bool = option("multi-atrous convolutions at the start of the local branch", True)
    dilations: tuple[int, ...] = option(
        "dilation of each 3x3 multi-atrous convolution", (6, 12, 18), unit="stride-16 cells"
    )
    self_attention: bool = option("attention over the local features", True)
    fused_pooling: str = option(
        "pooling of the orthogonal components", "average", choices=("average", "gem")
    )
    descriptor_size: int = option("length of the descriptor", 512)
    preprocessing: Preprocessing = Preprocessing()

    def __post_init__(self):
        if self.descriptor_size < 1:
            raise InputError(f"--descriptor_size={self.descriptor_size} must be at least 1")
        if self.gem_p <= 0:
            raise InputError(f"--gem_p={self.gem_p} must be above 0")
        if self.multi_atrous and (not self.dilations or min(self.dilations) < 1):
            raise InputError(
                f"--dilations={self.dilations} must be one or more numbers, each at least 1"
            )


@dataclasses.dataclass(frozen=True, kw_only=True)
class DataConfig:
    """The photos that training reads."""

    train_file_pattern: str = option("glob of the training TFRecords")
    validation_file_pattern: str = option(
        "glob of the validation TFRecords; empty: no validation", ""
    )
    num_classes: int = option("number of landmarks; labels are 0 to this less one", unit="classes")
    image_size: int = option("side of the square training crop", 512, unit="pixels")
    augment_crop: bool = option("random crop of 8-100 % of the area, aspect 3/4 to 4/3", True)
    crop_area_min: float = option("smallest share of the area that a random crop keeps", 0.08)
    augment_flip: bool = option("flip left to right, half of the time", True)
    augment_lighting: float = option("standard deviation of the PCA lighting noise; 0: none", 0.1)

    def __post_init__(self):
        if self.image_size < 32:
            raise InputError(f"--image_size={self.image_size} must be at least 32")
        if self.num_classes < 2:
            raise InputError(f"--num_classes={self.num_classes} must be at least 2")
        if not 0 < self.crop_area_min <= 1:
            raise InputError(f"--crop_area_min={self.crop_area_min} must be above 0 and at most 1")


@dataclasses.dataclass(frozen=True, kw_only=True)
class TrainingConfig:
    """How the network is trained."""

    logdir: str = option("run directory: checkpoints, metrics, configuration")
    init_from: str = option("model directory to start from; empty: none", "")
    backbone_weights: str = option(
        "ImageNet weights of the backbone: KerasHub preset, local .weights.h5 or .keras, or none",
        "none",
    )
    batch_size: int = option("photos in a step, over all replicas", 128, unit="photos")
    epochs: int = option("passes over the training photos", 100)
    max_steps: int = option("stop after this many steps; 0: after the last epoch", 0, unit="steps")
    initial_lr: float = option("learning rate after the warm-up", 0.05)
    warmup_epochs: float = option("linear warm-up of the learning rate", 5.0, unit="epochs")
    optimizer: str = option(
        "sgd decays kernels by a coupled L2 term, adamw decoupled from the gradient",
        "sgd",
        choices=("sgd", "adamw"),
    )
    momentum: float = option("momentum of sgd", 0.9)
    nesterov: bool = option("Nesterov's momentum, of sgd", False)
    weight_decay: float = option(
        "coupled L2 weight decay of kernels (not of norms and biases)", 1e-4
    )
    clip_norm: float = option("largest norm of the whole gradient; 0: unlimited", 0.0)
    margin: float = option("additive angular margin of ArcFace", 0.15, unit="radians")
    scale: float = option("scale of the cosine logits", 30.0)
    precision: str = option(
        "of the convolutions; norms, pooling, fusion and loss stay in float32",
        "float32",
        choices=("float32", "bfloat16"),
    )
    seed: int = option("of initialisation, order and augmentation", 0)
    log_every: int = option("between two lines of the log", 50, unit="steps")
    checkpoint_every: int = option("between two checkpoints", 1000, unit="steps")
    keep_checkpoints: int = option("how many of the latest checkpoints are kept", 2)
    validate_every: int = option(
        "between two validations; 0: at the end of each epoch", 0, unit="steps"
    )

    def __post_init__(self):
        for name in ("batch_size", "epochs", "log_every", "checkpoint_every", "keep_checkpoints"):
            if getattr(self, name) < 1:
                raise InputError(f"--{name}={getattr(self, name)} must be at least 1")
        for name in ("max_steps", "warmup_epochs", "weight_decay", "clip_norm", "validate_every"):
            if getattr(self, name) < 0:
                raise InputError(f"--{name}={getattr(self, name)} must be at least 0")
        if self.warmup_epochs >= self.epochs:
            raise InputError(
                f"--warmup_epochs={self.warmup_epochs} must be less than --epochs={self.epochs}"
            )
        for name in ("initial_lr", "scale"):
            if getattr(self, name) <= 0:
                raise InputError(f"--{name}={getattr(self, name)} must be above 0")


# --- dataclasses <-> JSON ------------------------------------------------------------


def to_dict(config) -> dict:
    """Returns the configuration as plain JSON values."""
    return dataclasses.asdict(config)


def from_dict(cls: type, values: dict, source: str):
    """Returns `cls` from plain JSON values.

    Args:
      cls: a configuration dataclass.
      values: as `to_dict` gave them.
      source: where they were read, for the error.

    Raises:
      InputError: on a field that `cls` does not know, or one it needs and is not there.
    """
    hints = typing.get_type_hints(cls)
    unknown = set(values) - set(hints)
    if unknown:
        raise InputError(f"{source}: unknown {cls.__name__} field {sorted(unknown)[0]!r}")
    kwargs = {}
    for name, value in values.items():
        if dataclasses.is_dataclass(hints[name]):
            value = from_dict(hints[name], value, source)
        elif isinstance(value, list):
            value = tuple(value)
        kwargs[name] = value
    try:
        return cls(**kwargs)
    except TypeError as error:
        raise InputError(f"{source}: {error}") from error


# --- dataclasses <-> flags -----------------------------------------------------------


def _options(cls: type) -> list[dataclasses.Field]:
    return [field for field in dataclasses.fields(cls) if "help" in field.metadata]


def _element(hint) -> type | None:
    """Returns T of `tuple[T, ...]`, None for other types."""
    return typing.get_args(hint)[0] if typing.get_origin(hint) is tuple else None


def define_flags(*classes: type, values: flags.FlagValues = flags.FLAGS) -> None:
    """Defines one flag for each option of the dataclasses."""
    for cls in classes:
        hints = typing.get_type_hints(cls)
        for field in _options(cls):
            hint, choices = hints[field.name], field.metadata["choices"]
            default = None if field.default is dataclasses.MISSING else field.default
            common = {"flag_values": values}
            name, help = field.name, field.metadata["help"]
            if _element(hint) is not None:
                default = None if default is None else [str(x) for x in default]
                flags.DEFINE_list(name, default, help, **common)
            elif choices:
                flags.DEFINE_enum(name, default, list(choices), help, **common)
            else:
                define = {
                    bool: flags.DEFINE_bool,
                    int: flags.DEFINE_integer,
                    float: flags.DEFINE_float,
                    str: flags.DEFINE_string,
                }[hint]
                define(name, default, help, **common)


def from_flags(cls: type, values: flags.FlagValues = flags.FLAGS):
    """Returns `cls` from the parsed flags.

    Raises:
      InputError: on a required flag without value, a list element of the wrong type, or a
        value with an inline comment (absl takes `#` for a comment only in the first column).
    """
    hints, kwargs = typing.get_type_hints(cls), {}
    for field in _options(cls):
        name, value = field.name, values[field.name].value
        if value is None:
            raise InputError(f"--{name} is required: {field.metadata['help']}")
        if isinstance(value, str) and " #" in value:
            raise InputError(
                f"--{name}={value!r}: a flagfile takes comments only on lines of their own"
            )
        element = _element(hints[name])
        if element is not None:
            try:
                value = tuple(element(x) for x in value)
            except ValueError as error:
                raise InputError(f"--{name}={','.join(value)}: {error}") from error
        kwargs[name] = value
    return cls(**kwargs)


def to_flagfile(*configs) -> str:
    """Returns the text of a flagfile that gives these configurations again."""
    lines = []
    for config in configs:
        for field in _options(type(config)):
            value = getattr(config, field.name)
            if isinstance(value, bool):
                lines.append(f"--{'' if value else 'no'}{field.name}")
            else:
                text = ",".join(map(str, value)) if isinstance(value, tuple) else str(value)
                lines.append(f"--{field.name}={text}")
    return "\n".join(lines) + "\n"


def _help_text(program: str, doc: str, classes: Sequence[type]) -> str:
    lines = [f"usage: {program} [--flagfile=FILE] [--flag=value ...]", ""]
    if doc:
        lines += [doc.strip().split("\n\n")[0], ""]
    for cls in classes:
        for field in _options(cls):
            meta = field.metadata
            if field.default is dataclasses.MISSING:
                default = "required"
            else:
                value = field.default
                text = ",".join(map(str, value)) if isinstance(value, tuple) else str(value)
                default = f"default {text or 'empty'}"
            notes = [default] + ([meta["unit"]] if meta["unit"] else [])
            if meta["choices"]:
                notes.append("one of " + ", ".join(meta["choices"]))
            text = f"{meta['help']} ({'; '.join(notes)})"
            lines.append(f"  --{field.name}")
            lines += textwrap.wrap(text, 92, initial_indent=" " * 6, subsequent_indent=" " * 6)
    return "\n".join(lines)


def main(stage: Callable, *classes: type) -> typing.NoReturn:
    """Runs `stage(*configs)` as a command and exits.

    Flags are defined here and nowhere else, so importing a stage defines none. Exit codes:
    0 done, 1 bad input or a failure, 130 interrupted.
    """
    program = f"python {sys.argv[0]}"
    spec = getattr(sys.modules["__main__"], "__spec__", None)
    if spec is not None:
        program = f"python -m {spec.name}"
    define_flags(*classes)
    flags.DEFINE_bool("help", False, "show this help", short_name="h")
    # oneDNN's convolutions are the faster ones on processors without AVX-512 too, where
    # TensorFlow leaves them off; and TensorFlow's own chatter is no answer to the user.
    os.environ.setdefault("TF_ENABLE_ONEDNN_OPTS", "1")
    os.environ.setdefault("TF_CPP_MIN_LOG_LEVEL", "2")
    for name in ("tensorflow", "absl"):
        logging.getLogger(name).setLevel(logging.ERROR)
    logging.basicConfig(level=logging.INFO, format="%(message)s", stream=sys.stderr)
    try:
        rest = flags.FLAGS(sys.argv)[1:]
        if flags.FLAGS.help:
            print(_help_text(program, stage.__doc__ or "", classes))
            sys.exit(0)
        if rest:
            raise InputError(f"{rest[0]!r} is no flag; write --name=value")
        stage(*(from_flags(cls) for cls in classes))
    except (flags.Error, InputError, FloatingPointError, OSError) as error:
        message = " ".join(str(error).split())
        sys.exit(f"{program}: error: {message}")
    except KeyboardInterrupt:
        print(f"{program}: interrupted", file=sys.stderr)
        sys.exit(130)
    sys.exit(0)

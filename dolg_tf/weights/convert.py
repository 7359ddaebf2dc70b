"""The authors' checkpoints -> model directories, and our networks -> checkpoints for their code."""

import dataclasses
import logging
import math
import pathlib
from collections import defaultdict

from dolg_tf.modeling.config import CheckpointConfig, DolgConfig, HowConfig
from dolg_tf.modeling.files.config_file import find_network
from dolg_tf.stage import files
from dolg_tf.stage.command import one_line
from dolg_tf.stage.config import InputError, option
from dolg_tf.weights.files.tensors import check_suffix, open_tensors, write_tensors

log = logging.getLogger(__name__)

# Largest error against a reference: far above float32 rounding (3e-6), far below the effect of a
# wrong layer, pixel or channel order.
TOLERANCE = 1e-4


@dataclasses.dataclass(frozen=True, kw_only=True)
class ConvertConfig(CheckpointConfig):
    """Which weights are converted, and to what."""

    input: str = option(
        "checkpoint of the code of DOLG's or of HOW's authors: .pyth, .pth, .pt, .npz or "
        ".safetensors; with --to=official a run or model directory"
    )
    output: str = option(
        "model directory; with --to=official a .pyth, .pth, .pt, .npz or .safetensors file, of "
        "HOW one of the first three"
    )
    to: str = option(
        "model_dir: from the authors' code to ours; official: from ours to that of the authors of "
        "the network, DOLG's or HOW's",
        "model_dir",
        choices=("model_dir", "official"),
    )
    reference: str = option(
        ".npz file of photos and the authors' outputs to compare the converted network with; "
        "nothing is written if the error is above 1e-4; empty: no comparison",
        "",
    )
    overwrite: bool = option("replace an existing output", False)

    def __post_init__(self):
        if self.to == "official" and self.reference:
            raise InputError("--reference is for checkpoints of the authors' code")
        if self.to != "official" and (self.checkpoint, self.weights) != ("latest", "raw"):
            raise InputError("--checkpoint and --weights are for runs, with --to=official")


def convert_checkpoint(config: ConvertConfig) -> pathlib.Path:
    """Converts the checkpoints of DOLG's and HOW's authors to model directories, and back.

    Returns:
      The output.

    Raises:
      InputError: when the input is damaged, or a tensor of it has no place.
    """
    output = pathlib.Path(config.output)
    marks = ("config.json", "model.weights.h5") if config.to != "official" else ()
    files.check_output(output, config.overwrite, *marks)
    if config.to == "official":
        _to_official(config, output)
    else:
        _from_official(config, output)
    log.info("wrote %s", output)
    return output


def _from_official(config: ConvertConfig, output: pathlib.Path) -> None:
    path = pathlib.Path(config.input)
    file = open_tensors(path)
    if config.reference:
        open_tensors(config.reference)

    from dolg_tf.modeling.model_dir import build_network, save_dolg
    from dolg_tf.weights import how, official

    of_how = how.holds(file.tensors)
    rename = how.how_name if of_how else official.official_name
    state = {}
    for name, tensor in file.tensors.items():
        ours = rename(name)
        if ours in state:
            raise InputError(f"{path} holds {ours} twice, once as {name}")
        state[ours] = tensor
    try:
        model = how.detect(state, file.values) if of_how else official.detect(state)
        network = build_network(model)
        ignored = (how if of_how else official).load_state_dict(network, state)
    except InputError as error:
        text = str(error)
        raise InputError(text if text.startswith(str(path)) else f"{path}: {text}") from error
    digest = files.sha256(path)
    head = state.get("desc_cls.weight")
    classes = head.shape[0] if head is not None and len(head.shape) == 2 else None
    log.info("%s, %s, sha256 %s", path, file.format, digest)
    log.info(describe(model, classes))
    log.info(table(state, ignored, file.beside))
    if config.reference:
        _compare(network, config.reference)
    provenance = {
        "source": f"checkpoint of the{' HOW' if of_how else ''} authors' code",
        "file": path.name,
        "sha256": digest,
        "format": file.format,
        "num_classes": classes,
        "reference": pathlib.Path(config.reference).name or None,
    }
    save_dolg(network, model, output, provenance)


def _to_official(config: ConvertConfig, output: pathlib.Path) -> None:
    check_suffix(output)
    path = pathlib.Path(config.input)
    found, values, _ = find_network(path, config.checkpoint, config.weights)
    of_how = isinstance(found, HowConfig)
    check_suffix(output, beside=of_how)

    from dolg_tf.modeling.model_dir import load_network

    network, model, _ = load_network(path, config.checkpoint, config.weights)
    if of_how:
        from dolg_tf.weights import how

        state, beside = how.state_dict(network, model)
    else:
        state, beside = _state_of_dolg(network, model, config, "training" in values), None
    log.info(describe(model, None))
    log.info(table(state, {}, ()))
    write_tensors(output, state, beside)


def _state_of_dolg(network, model: DolgConfig, config: ConvertConfig, run: bool) -> dict:
    """Returns the state dict of a DOLG, with the class head of a run."""
    from dolg_tf.modeling.model_dir import load_head
    from dolg_tf.weights import official

    state = official.state_dict(network, model)
    if run:
        head = official.head_state(load_head(config.input, config.checkpoint, config.weights))
        if not head:
            log.info(
                "class head left out: it has sub-centres, which the authors' code does not have"
            )
        state |= head
    if model.multi_atrous:
        log.info("their published model code has multi-atrous commented out: enable it there")
    return state


def describe(config: DolgConfig | HowConfig, classes: int | None) -> str:
    """Returns a description of a checkpoint of the authors' code."""
    if isinstance(config, HowConfig):
        mean, std = config.preprocessing.mean, config.preprocessing.std
        return (
            f"HOW, {config.backbone} up to its {config.local_source}, {config.dimensions}-d local "
            f"features, RGB input, mean {mean}, std {std}"
        )
    trained = "trained" if config.global_pooling == "learned" else "fixed"
    parts = [
        f"DOLG, {config.backbone}, {'with' if config.multi_atrous else 'without'} multi-atrous",
        f"GeM p {config.gem_p:.4g} ({trained})",
        f"{config.descriptor_size}-d descriptor",
        f"{config.preprocessing.channel_order.upper()} input",
    ]
    return ", ".join(parts + ([f"{classes:,} classes"] if classes else []))


def table(state, ignored, beside) -> str:
    """Returns a table: tensors and values of each part, and whether they were used or why not."""
    parts = defaultdict(lambda: [0, 0])
    for name, tensor in state.items():
        part = name.split(".")[0]
        row = parts[
            (ignored.get(name, ""), "*.num_batches_tracked" if name.endswith("tracked") else part)
        ]
        row[0] += 1
        row[1] += math.prod(tensor.shape)
    lines = [f"{'part':<22}{'tensors':>8}{'values':>13}  "]
    for (reason, part), (tensors, values) in sorted(parts.items()):
        lines.append(
            f"{part:<22}{tensors:>8}{values:>13,}  {f'ignored: {reason}' if reason else 'used'}"
        )
    lines += [f"{name:<22}{'-':>8}{'-':>13}  ignored: beside the weights" for name in beside]
    lines = [one_line(line) for line in lines]
    return "\n".join(lines)


def _compare(network, reference: str) -> None:
    """Logs the errors of the network against a reference.

    Raises:
      InputError: when one is above `TOLERANCE`.
    """
    from dolg_tf.weights.compare import compare

    rows = compare(network, reference)
    lines = [f"{'photo':<12}{'what':<24}{'relative error':>14}"]
    lines += [f"{photo or '-':<12}{what:<24}{error:>14.1e}" for photo, what, error in rows]
    log.info("\n".join(map(one_line, lines)))
    if not any(what == "preprocessing" for _, what, _ in rows):
        log.info(
            "the reference holds no input: errors of network and preprocessing cannot be separated"
        )
    wrong = [row for row in rows if not row[2] <= TOLERANCE]
    if wrong:
        photo, what, error = wrong[0]
        raise InputError(
            f"--reference={reference}: {photo}{what} is {error:.1e} off, more than {TOLERANCE:.0e}"
        )

"""Contents of the tables of the report: the recipe, scores, and their protocol."""

from collections.abc import Mapping

from dolg_tf.apps.report.figures.style import percent
from dolg_tf.stage import files


def recipe(path: str) -> list[tuple[str, str]]:
    """Returns the main options of a run's config.json."""
    stored = files.read_json(path)
    wanted = {
        "model": ("backbone", "fusion", "descriptor_size"),
        "data": ("num_classes", "image_size"),
        "training": ("loss", "epochs", "batch_size", "optimizer", "initial_lr", "schedule", "seed"),
    }
    rows = []
    for section, names in wanted.items():
        values = stored.get(section) if isinstance(stored, dict) else None
        for name in names if isinstance(values, dict) else ():
            if name in values:
                rows.append((name, str(values[name])))
    return rows


def interval(level: Mapping) -> str:
    """Returns a mean average precision with its interval, in percent.

    Args:
      level: {"mAP", "mAP_interval"} of an evaluation.
    """
    mean = percent(level["mAP"]).removesuffix(" %")
    if not level["mAP_interval"]:
        return mean
    low, high = (f"{100 * end:.1f}" for end in level["mAP_interval"])
    return f"{mean} ({low}\N{EN DASH}{high})"


def how_scored(protocol: Mapping) -> list[tuple[str, str]]:
    """Returns the protocol of scores, in words."""
    crops = {"box": "cut to their boxes", "none": "NOT cut to their boxes: against the protocol"}
    rerank = dict(protocol.get("rerank") or {"method": "not known"})
    method = rerank.pop("method", "not known")
    numbers = ", ".join(f"{key} {value}" for key, value in rerank.items())

    def count(key: str) -> str:
        value = protocol.get(key)
        return f"{value:,}" if isinstance(value, int) else "not known"

    def known(value) -> str:
        return "not known" if value is None else str(value)

    scales = protocol.get("index_scales")
    whitening = "yes" if protocol.get("whitening") else "no"
    if protocol.get("model_hash") is None:  # nothing is known about an .npy
        whitening = "not known"
    search = ", ".join(f"{key} {value}" for key, value in (protocol.get("search") or {}).items())
    return [
        ("ground truth", known(protocol.get("ground_truth"))),
        ("queries", f"{count('queries')}, {crops.get(protocol.get('query_crop'), 'not known')}"),
        ("index", f"{count('index')} photos and {count('distractors')} distractors"),
        ("scales", ", ".join(f"{scale:g}" for scale in scales) if scales else "not known"),
        ("model", known(protocol.get("model_hash"))[:12]),
        ("whitening", whitening),
        *([("search", search)] if search else []),
        ("re-ranking", f"{method} ({numbers})" if numbers else method),
        *(("remark", str(remark)) for remark in protocol.get("remarks") or ()),
    ]

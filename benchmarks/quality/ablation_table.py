"""Results of `ablations.py`: a table beside the paper's figures, JSON and a plot."""

import pathlib
from collections.abc import Sequence

import numpy as np

from dolg_tf.stage import files

FULL = "full model"
# Fields of `DolgConfig` that differ from the full model's.
VARIANTS = {
    FULL: {},
    "no local branch": {"fusion": "global_only"},
    "no multi-atrous": {"multi_atrous": False},
    "no self-attention": {"self_attention": False},
    "concatenation": {"fusion": "concat"},
    "Hadamard": {"fusion": "hadamard"},
    "local features of f4": {"local_source": "p5"},
    "average for GeM": {"global_pooling": "average"},
}
# Medium mAP of DOLG-R50 on Revisited Oxford and Paris (Yang et al., ICCV 2021, its ablations;
# queries were not cropped to their boxes). Variants without figures in the paper are left out.
PAPER = {
    "full model": (80.50, 89.81),
    "no local branch": (78.21, 89.00),
    "no multi-atrous": (80.48, 89.27),
    "no self-attention": (78.15, 89.48),
    "concatenation": (78.40, 89.37),
    "Hadamard": (79.20, 89.91),
}
RESAMPLES = 10_000
SPLITS = ("seen", "fold0", "fold1", "fold2")
# Splits averaged together: all queries; the queries of all folds, each while it was left out.
GROUPS = {"seen": SPLITS[:1], "left out": SPLITS[1:]}


def groups(splits: dict[str, dict]) -> dict[str, dict[str, np.ndarray]]:
    """Returns {"seen"|"left out": {"AP"|"hit": one per query}} of a seed, for finished groups."""
    done = {split for split, found in splits.items() if "AP" in found}
    return {
        group: {key: np.concatenate([splits[name][key] for name in names]) for key in ("AP", "hit")}
        for group, names in GROUPS.items()
        if done.issuperset(names)
    }


def statistics(state: dict, full: str) -> list[dict]:
    """Returns the scores of each variant and group, in percent.

    Args:
      state: "runs", {variant: {seed: {split: {"AP": [one per query], "hit": [...]}}}};
        "untrained", {split: the same}; "landmarks", {split: [one per query]}.
      full: the variant that the others are compared with.

    Returns:
      Rows {"variant", "group", "mAP" (one per seed), "R@1", "difference" (from the full model's
      mAP), "interval" (95 %, see `bootstrap`)}.
    """
    found = {"untrained GeM": {"": groups(state["untrained"])}}
    for variant, seeds in state["runs"].items():
        found[variant] = {seed: groups(splits) for seed, splits in seeds.items()}
    rows = []
    for variant, seeds in found.items():
        for group, splits in GROUPS.items():
            there = [seed for seed in seeds if group in seeds[seed]]
            if not there:
                continue
            row = {"variant": variant, "group": group, "difference": None, "interval": None}
            row["mAP"] = [100 * seeds[seed][group]["AP"].mean() for seed in there]
            row["R@1"] = 100 * np.mean([seeds[seed][group]["hit"].mean() for seed in there])
            both = [seed for seed in there if group in found[full].get(seed, {})]
            if variant != full and both:
                pairs = [seeds[seed][group]["AP"] - found[full][seed][group]["AP"] for seed in both]
                landmarks = np.concatenate([state["landmarks"][split] for split in splits])
                row["difference"], row["interval"] = bootstrap(100 * np.array(pairs), landmarks)
            rows.append(row)
    return rows


def bootstrap(differences: np.ndarray, landmarks: np.ndarray) -> tuple[float, tuple[float, float]]:
    """Returns the mean of the differences and its 95 % interval.

    Landmarks are resampled with all their queries, since these are alike. Seeds are resampled too.

    Args:
      differences: (seeds, queries), of the same seed and query.
      landmarks: (queries,), the landmark of each query.
    """
    rng = np.random.default_rng(0)
    _, place, counts = np.unique(landmarks, return_inverse=True, return_counts=True)
    sums = np.stack([np.bincount(place, weights=row) for row in differences])  # (S, L)
    seeds, number = sums.shape
    drawn = rng.multinomial(number, [1 / number] * number, RESAMPLES)  # draws per landmark
    drawn_seeds = rng.multinomial(seeds, [1 / seeds] * seeds, RESAMPLES)
    means = np.einsum("rs,sl,rl->r", drawn_seeds, sums, drawn) / seeds / (drawn @ counts)
    low, high = np.quantile(means, [0.025, 0.975])
    return float(differences.mean()), (float(low), float(high))


def verdict(row: dict) -> str:
    """Returns in words whether a variant is worse than the full model, as the paper claims."""
    if row["interval"] is None:
        return ""
    low, high = row["interval"]
    return "worse" if high < 0 else "BETTER" if low > 0 else "within noise"


def mean_cell(scores: Sequence[float]) -> str:
    """Returns the mean, with its standard error where there are several scores."""
    error = f" ± {np.std(scores, ddof=1) / len(scores) ** 0.5:.1f}" if len(scores) > 1 else ""
    return f"{np.mean(scores):.1f}{error}"


def difference_cell(difference: float, interval: tuple[float, float]) -> str:
    low, high = interval
    return f"{difference:+.1f} ({low:+.1f} to {high:+.1f})"


def paper_cell(variant: str) -> str:
    return " / ".join(f"{score:.2f}" for score in PAPER.get(variant, ()))


def markdown(rows: list[dict]) -> str:
    lines = [
        "| variant | landmarks | mAP | R@1 | mAP minus the full model's (95 %) | verdict | "
        "paper, ROxf / RPar medium | seeds |",
        "| --- | --- | --- | --- | --- | --- | --- | --- |",
    ]
    for row in rows:
        difference = difference_cell(row["difference"], row["interval"]) if row["interval"] else ""
        cells = (row["variant"], row["group"], mean_cell(row["mAP"]), f"{row['R@1']:.1f}")
        cells += (difference, verdict(row), paper_cell(row["variant"]), str(len(row["mAP"])))
        lines.append(f"| {' | '.join(cells)} |")
    compared = sum(row["interval"] is not None for row in rows)
    lines += ["", f"Of {compared} comparisons, {compared / 20:.1f} are expected to leave their"]
    lines += ["95 % interval by chance alone."]
    return "\n".join(lines)


def plot(rows: list[dict], path: pathlib.Path) -> None:
    """Plots the differences from the full model with their intervals."""
    from matplotlib.figure import Figure

    figure = Figure(figsize=(8, 4.5), layout="constrained")
    drawn = [row for row in rows if row["interval"]]
    names = list(dict.fromkeys(row["variant"] for row in drawn))
    axes = figure.subplots(1, len(GROUPS), sharey=True)
    for axis, group in zip(axes, GROUPS, strict=True):
        axis.axvline(0, color="0.6", linewidth=1)
        for row in (row for row in drawn if row["group"] == group):
            low, high = row["interval"]
            y = names.index(row["variant"])
            axis.plot([low, high], [y, y], color="tab:blue")
            axis.plot(row["difference"], y, "o", color="tab:blue")
        axis.set_title(f"landmarks {group}" if group != "seen" else "landmarks seen in training")
        axis.set_xlabel("mAP minus the full model's, points")
    axes[0].set_yticks(range(len(names)), names)
    axes[0].invert_yaxis()
    figure.savefig(path, dpi=120)


def write(folder: pathlib.Path, state: dict, full: str) -> None:
    """Writes ablations.json, ablations.md and ablations.png, and prints the table."""
    runs = state["runs"]
    if not any(groups(splits) for splits in runs.get(full, {}).values()):
        raise SystemExit("no run of the full model is finished; run the same command again")
    scores = {
        variant: {
            seed: {
                split: {"mAP": float(np.mean(found["AP"])), "R@1": float(np.mean(found["hit"]))}
                for split, found in splits.items()
                if "AP" in found
            }
            for seed, splits in seeds.items()
        }
        for variant, seeds in runs.items()
    }
    files.write_json(folder / "ablations.json", scores)
    rows = statistics(state, full)
    text = markdown(rows)
    files.write_text(folder / "ablations.md", text + "\n")
    plot(rows, folder / "ablations.png")
    print(text)

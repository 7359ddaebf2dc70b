"""The paper's ablations on procedural landmarks, with a small ResNet trained from scratch.

    python benchmarks/quality/procedural_ablations.py --output=runs/procedural_ablations

`ablations.py` keeps the backbone's ImageNet weights. Here every layer is trained, with the
quickstart's recipe but for fewer epochs. All variants share photos, steps and seeds. Scores are mAP
(medium) and precision at 1 of queries of trained and of untrained landmarks, in one index of both,
at three scales. Differences from the full model have a 95 % interval over landmarks and seeds. Each
core trains one network at a time. Finished runs are kept in OUTPUT, so the same command continues
after an interruption.
"""

import argparse
import concurrent.futures
import os
import pathlib
import queue
import subprocess
import sys

import numpy as np
from ablation_table import FULL, VARIANTS, bootstrap, difference_cell, mean_cell, paper_cell

from dolg_tf.data.scales import SCALE_SETS
from dolg_tf.retrieval.ground_truth import load_ground_truth
from dolg_tf.stage import files, progress

SPLITS = ("seen", "unseen")


def run_dolg(*words: str) -> None:
    """Runs a command of the project.

    Raises:
      RuntimeError: when it fails, with the last line of its log.
    """
    command = [sys.executable, "-m", "dolg_tf", *words]
    done = subprocess.run(command, capture_output=True, text=True)
    if done.returncode:
        raise RuntimeError(f"dolg {words[0]}: {done.stderr.strip().splitlines()[-1:]}")


def prepare(folder: pathlib.Path) -> None:
    """Draws the photos and builds their records; keeps those that exist."""
    photos = folder / "photos"
    run_dolg("draw", f"--output={photos}")
    run_dolg(
        *("records", f"--output_dir={folder / 'records'}", "--num_shards=8"),
        *(f"--images_dir={photos / 'train'}", f"--train_csv={photos / 'train.csv'}"),
        *(f"--train_clean_csv={photos / 'train_clean.csv'}", "--validation_fraction=0"),
    )


def score(folder: pathlib.Path, variant: str, seed: int, epochs: int, run: pathlib.Path) -> dict:
    """Trains and exports a network; returns {"seen"|"unseen": its medium scores}."""
    flags = [f"--{name}={value}" for name, value in VARIANTS[variant].items()]
    run_dolg(
        *("train", "--recipe=quickstart", f"--logdir={run}", f"--seed={seed}"),
        *(f"--train_file_pattern={folder / 'records' / 'train-*'}", "--validation_file_pattern="),
        *(f"--epochs={epochs}", *flags),
    )
    model, found = run / "saved_model", {}
    scales = ",".join(map(str, SCALE_SETS["three"]))
    run_dolg(
        *("export", f"--model_dir={run}", f"--output={model}", "--overwrite"),
        f"--scales={scales}",
    )
    photos = folder / "photos"

    def describe(subset: str, split: str) -> pathlib.Path:
        run_dolg(
            *("extract", f"--images={photos / f'gnd_{split}.pkl'}"),
            *(f"--subset={subset}", f"--image_root={photos}", f"--saved_model={model}"),
            f"--output={run / f'{split}_{subset}'}",
        )
        return run / f"{split}_{subset}"

    index = describe("index", SPLITS[0])  # the same one for both
    for split in SPLITS:
        report = run / f"{split}.json"
        run_dolg(
            *("evaluate", "revisited", f"--output={report}"),
            *(f"--ground_truth={photos / f'gnd_{split}.pkl'}", f"--index_descriptors={index}"),
            f"--query_descriptors={describe('query', split)}",
        )
        found[split] = files.read_json(report)["medium"]
    return found


def landmarks_of(truth: pathlib.Path) -> np.ndarray:
    """Returns a landmark number per query: queries of one landmark share their positives."""
    wanted = [query.easy.tobytes() for query in load_ground_truth(truth).queries]
    return np.unique(wanted, return_inverse=True)[1]


def table(found: dict, landmarks: dict[str, np.ndarray]) -> list[str]:
    """Returns the lines of a markdown table.

    Args:
      found: {variant: {seed: {split: medium scores}}}, with the same seeds for all variants.
      landmarks: {split: (queries,)}, the landmark of each query.
    """
    titles = [f"{split} mAP | P@1 | minus the full model" for split in SPLITS]
    lines = [f"| variant | {' | '.join(titles)} | paper, ROxf / RPar medium |"]
    lines.append(f"|{' --- |' * (2 + 3 * len(SPLITS))}")
    for variant, seeds in found.items():
        cells = [variant]
        for split in SPLITS:
            rows = [scores[split] for scores in seeds.values()]
            cells.append(mean_cell([100 * row["mAP"] for row in rows]))
            cells.append(f"{100 * np.mean([row['mP@1'] for row in rows]):.1f}")
            if variant == FULL:
                cells.append("")
                continue
            pairs = [(seeds[seed][split]["AP"], found[FULL][seed][split]["AP"]) for seed in seeds]
            differences = 100 * np.array([np.subtract(*pair) for pair in pairs])
            cells.append(difference_cell(*bootstrap(differences, landmarks[split])))
        cells.append(paper_cell(variant))
        lines.append(f"| {' | '.join(cells)} |")
    return lines


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__.split("\n")[0], formatter_class=argparse.ArgumentDefaultsHelpFormatter
    )
    parser.add_argument("--output", required=True, help="folder of photos, runs and scores")
    parser.add_argument("--epochs", type=int, default=8, help="epochs per run")
    parser.add_argument("--seeds", type=int, default=2, help="runs per variant")
    arguments = parser.parse_args()
    folder = pathlib.Path(arguments.output).resolve()
    prepare(folder)
    cores = queue.SimpleQueue()
    for core in sorted(os.sched_getaffinity(0)):
        cores.put(core)

    def pin():  # this thread and the processes that it starts
        os.sched_setaffinity(0, {cores.get()})

    def finish(variant: str, seed: int) -> dict:
        run = folder / variant.replace(" ", "_") / f"{arguments.epochs}_epochs_{seed}"
        place = run / "scores.json"
        if not place.exists():
            files.write_json(place, score(folder, variant, seed, arguments.epochs, run))
        return files.read_json(place)

    # All variants of a seed before the next seed, so that a partial result compares them.
    jobs = [(variant, seed) for seed in range(arguments.seeds) for variant in VARIANTS]
    found = {variant: {} for variant in VARIANTS}
    with concurrent.futures.ThreadPoolExecutor(cores.qsize(), initializer=pin) as pool:
        done = pool.map(finish, *zip(*jobs, strict=True))
        finished = zip(jobs, done, strict=True)
        try:
            for (variant, seed), scores in progress.track(finished, len(jobs), "training", "runs"):
                found[variant][seed] = scores
        except BaseException:
            pool.shutdown(cancel_futures=True)  # jobs that have not started
            raise
    landmarks = {split: landmarks_of(folder / "photos" / f"gnd_{split}.pkl") for split in SPLITS}
    print("\n".join(table(found, landmarks)))


if __name__ == "__main__":
    main()

"""When a second stage pays: local features and geometry, on larger photos of labelled landmarks.

    DOLG_LARGE_PHOTOS=folder python benchmarks/quality/geometric.py --output=runs/geometric
    ... --saved_model=runs/mine/1 --scales=0.3125,0.4419 --output=runs/geometric_mine

The folder holds photos of 600 to 1,024 pixels and a labels.csv with the columns path, landmark and
split; queries are searched among the photos of the split "index". Without --saved_model, the
network is ImageNet's EfficientNet-Lite0, its local features are the cells of its stride-16 map.
--scales are those of the descriptor; a network that was trained for 320 pixels needs smaller ones.
All steps are the commands that a user types, and OUTPUT keeps what they make.

Prints mAP and recall at 1 in percent, over the whole index, of descriptors as they are and whitened
by groups. A weight is chosen on half of the queries, the odd or the even ones, and its scores are
those of the other half. The best possible order shows what no second stage can exceed.
"""

import argparse
import os
import pathlib
import subprocess
import sys
import time

import numpy as np
from photo_scores import score_queries

from dolg_tf.data.own_photos import read_labels
from dolg_tf.retrieval import descriptors
from dolg_tf.retrieval.local import feature_set
from dolg_tf.retrieval.rerank import geometric, methods
from dolg_tf.retrieval.rerank.geometric import InlierCounts
from dolg_tf.retrieval.rerank.methods import RerankConfig
from dolg_tf.retrieval.rerank.reranked import Reranked
from dolg_tf.retrieval.verification.matching import match
from dolg_tf.retrieval.verification.pairs import VerifyConfig
from dolg_tf.stage.config import InputError
from dolg_tf.stage.tables import write_table

WEIGHTS = (0.0005, 0.001, 0.0015, 0.002, 0.003, 0.004, 0.006, 0.008, 0.012, 0.016)
CAP = 100.0  # of inliers
OURS = VerifyConfig(match="mutual", max_residual="30")
SCALES = "0.5,0.7071,1"


# --- photos -> descriptors and local features -----------------------------------------------


def run(folder: pathlib.Path, command: str, *more: str) -> None:
    """Runs `dolg COMMAND`, unless the folder has its output; `{}` stands for the folder."""
    words = [*command.format(folder).split(), *more]
    output = next(word.partition("=")[2] for word in words if word.startswith("--output="))
    if not (pathlib.Path(output, "meta.json").exists() or pathlib.Path(output).is_file()):
        subprocess.run([sys.executable, "-m", "dolg_tf", *words], check=True)


def describe(
    folder: pathlib.Path, photos: pathlib.Path, saved_model: str, scales: str
) -> dict[str, list[str]]:
    """Makes the sets in a folder; returns the landmarks of their photos by split."""
    folder.mkdir(parents=True, exist_ok=True)
    model = saved_model or f"{folder}/model"
    if not pathlib.Path(model, "saved_model.pb").exists():
        run(folder, "export --backbone_weights=efficientnet_lite0 --output={}/model")
    landmarks = {}
    labelled = read_labels(photos / "labels.csv")
    for split in ("query", "index"):
        rows = labelled[split]
        landmarks[split] = [landmark for _, landmark in rows]
        write_table(folder / f"{split}.csv", ["path"], ([path] for path, _ in rows))
        listed = f"--images={folder}/{split}.csv"
        run(
            folder,
            f"extract --output={{}}/{split} --local --local_scales={SCALES}",
            *(f"--saved_model={model}", listed, f"--image_root={photos}", f"--scales={scales}"),
        )
    return landmarks


def reduce(folder: pathlib.Path) -> list[str]:
    """Learns the reduction of local features, and the whitening by groups, on the index.

    Returns:
      Suffixes of the descriptor sets: "", and "_groups" where the photos form groups.
    """
    run(
        folder,
        "whiten fit --local --power=0.5 --descriptors={0}/index.local --output={0}/local.npz",
    )
    suffixes = [""]
    try:
        run(folder, "whiten fit --groups --descriptors={0}/index --output={0}/groups.npz")
        suffixes.append("_groups")
    except subprocess.CalledProcessError:
        print("so there is no second table")  # the command has said why
    for split in ("query", "index"):
        run(
            folder,
            f"whiten apply --local --descriptors={{0}}/{split}.local --whitening={{0}}/local.npz "
            f"--output={{0}}/{split}_reduced.local",
        )
        if len(suffixes) > 1:
            run(
                folder,
                f"whiten apply --descriptors={{0}}/{split} --whitening={{0}}/groups.npz "
                f"--output={{0}}/{split}_groups",
            )
    return suffixes


# --- rankings -> scores -----------------------------------------------------------------


class MatchCounts:
    """How many local features of two photos are each other's nearest, wherever they lie.

    Takes the place of `InlierCounts`.
    """

    def __init__(self, queries, index, settings: VerifyConfig):
        self._queries, self._index, self._settings = queries, index, settings
        self._known = {}

    def of(self, rows) -> list[np.ndarray]:
        """Returns the matches of each query with rows of the index."""
        return [
            np.array([self._count(query, row) for row in some.tolist()], np.int64)
            for query, some in enumerate(rows)
        ]

    def _count(self, query: int, row: int) -> int:
        if (query, row) not in self._known:
            pair = self._queries[query].descriptors, self._index[row].descriptors
            distance = self._settings.match_distance
            found = match(*pair, max_distance=distance, rule=self._settings.match)
            self._known[query, row] = len(found.query)
        return self._known[query, row]


def scores_of(found: Reranked, same: np.ndarray) -> dict[str, np.ndarray]:
    """Returns average precision and hit at 1 of each query, as fractions."""
    similarities = np.asarray(found.queries) @ np.asarray(found.index[:], np.float32).T
    places = np.argsort(np.argsort(-similarities, axis=1, kind="stable"), axis=1)
    if found.head is not None:
        head = np.arange(found.head.shape[1]) - found.head.shape[1]
        np.put_along_axis(places, found.head, np.broadcast_to(head, found.head.shape), 1)
    return {name: np.array(values) for name, values in score_queries(-places, same).items()}


def by_sum(before: Reranked, counts, verify: int, same: np.ndarray) -> tuple[dict, list[float]]:
    """Returns the scores of queries, by the weight that is best for the other half, and both."""
    found = {}
    for weight in WEIGHTS:
        ranked = geometric.rerank(
            before, counts, verify=verify, order="sum", weight=weight, cap=CAP
        )
        found[weight] = scores_of(ranked, same)
    half = np.arange(len(same)) % 2 == 0
    chosen = [max(WEIGHTS, key=lambda w: found[w]["AP"][~some].mean()) for some in (half, ~half)]
    mixed = {
        name: np.where(half, found[chosen[0]][name], found[chosen[1]][name])
        for name in ("AP", "hit")
    }
    return mixed, chosen


def best_order(before: Reranked, verify: int, same: np.ndarray) -> dict:
    """Returns the scores if those of the same place came first among the best."""
    head, _ = before.best(verify)
    right = np.take_along_axis(same, head, 1)
    order = np.argsort(~right, axis=1, kind="stable")
    return scores_of(
        Reranked(before.queries, before.index, np.take_along_axis(head, order, 1)), same
    )


def told(words: str, scores: dict, chosen: list[float] | None = None) -> None:
    """Prints a line of the table."""
    weights = "" if chosen is None else f"{chosen[0]:g}, {chosen[1]:g}"
    print(
        f"| {words} | {100 * scores['AP'].mean():.1f} | {100 * scores['hit'].mean():.1f} "
        f"| {weights} |",
        flush=True,
    )


def table(folder: pathlib.Path, suffix: str, counts: dict, same: np.ndarray, verify: int) -> None:
    """Prints the scores of the descriptors of a folder."""
    queries, index = (
        np.asarray(descriptors.read(folder / f"{split}{suffix}").descriptors[:], np.float32)
        for split in ("query", "index")
    )
    plain = Reranked(queries, index)
    refined = methods.apply(RerankConfig(rerank="superglobal"), queries, index)
    told("descriptor alone", scores_of(plain, same))
    told("+ matches, not verified", *by_sum(plain, counts["matches"], verify, same))
    for name in ("delg", "ours"):
        found = geometric.rerank(plain, counts[name], verify=verify, order="delg")
        told(f"inliers first, {name}", scores_of(found, same))
    told("+ inliers", *by_sum(plain, counts["ours"], verify, same))
    told("SuperGlobal", scores_of(refined, same))
    told("SuperGlobal, + inliers", *by_sum(refined, counts["ours"], verify, same))
    told("best order possible", best_order(plain, verify, same))


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("--photos", default=os.environ.get("DOLG_LARGE_PHOTOS"))
    parser.add_argument("--output", required=True, type=pathlib.Path)
    parser.add_argument("--saved_model", default="", help="empty: ImageNet's EfficientNet-Lite0")
    parser.add_argument("--scales", default="", help="empty: those of the export")
    parser.add_argument("--verify", type=int, default=100, help="photos of each query")
    settings = parser.parse_args()
    if not settings.photos:
        raise InputError("which photos? Give --photos, or set DOLG_LARGE_PHOTOS")
    photos = pathlib.Path(settings.photos)
    landmarks = describe(settings.output, photos, settings.saved_model, settings.scales)
    suffixes = reduce(settings.output)
    same = np.array(landmarks["query"])[:, None] == np.array(landmarks["index"])
    raw, reduced = (
        [
            feature_set.read(settings.output / f"{split}{suffix}.local")
            for split in ("query", "index")
        ]
        for suffix in ("", "_reduced")
    )
    counts = {
        "delg": InlierCounts(*raw, VerifyConfig()),
        "ours": InlierCounts(*reduced, OURS),
        "matches": MatchCounts(*reduced, OURS),
    }
    for suffix in suffixes:
        words = "whitened by groups" if suffix else "as they are"
        print(f"\nDescriptors {words}:\n\n| order | mAP | R@1 | weights |\n|{' --- |' * 4}")
        table(settings.output, suffix, counts, same, settings.verify)
    cost(settings.output, reduced, counts["ours"].settings)


def cost(folder: pathlib.Path, reduced: list, settings: VerifyConfig) -> None:
    """Prints what local features take on disk, and what verifying takes, on new pairs."""
    files = (folder / "index_reduced.local").iterdir()
    size = sum(file.stat().st_size for file in files)
    pairs = [np.arange(10) for _ in range(20)]
    start, cpu = time.perf_counter(), time.process_time()
    InlierCounts(*reduced, settings).of(pairs)
    wall, used = time.perf_counter() - start, time.process_time() - cpu
    count = sum(map(len, pairs))
    print(
        f"\n{size / len(reduced[1]) / 1000:.0f} kB of local features a photo; a pair takes "
        f"{1000 * wall / count:.1f} ms to verify, {1000 * used / count:.1f} of CPU"
    )


if __name__ == "__main__":
    main()

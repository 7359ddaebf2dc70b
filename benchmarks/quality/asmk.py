"""ASMK on a network's own local features beside its global descriptor, and both added.

    python benchmarks/quality/asmk.py --photos=DIR --train=DIR --work=DIR
    python benchmarks/quality/asmk.py --ground_truth=gnd.pkl --image_root=DIR --train=DIR \\
        --saved_model=DIR --work=DIR

Photos: a folder with a labels.csv (path, landmark, split), or a ground truth. The network: an
export of mode serving, by default EfficientNet-Lite0 with ImageNet's weights, untrained for places.
Words are learned from the photos of --train, its train split if it has a labels.csv; without it
from the photos that are searched. Everything is made by the product's stages, kept in --work.

Settings are chosen by mAP on every other query, and reported on the others: number of words, words
per feature of a query, exponent, and the weight of the sum. "HOW's" are alpha 3 and 5 words per
feature, with the same number of words. Prints one table; mAP and R@1 in percent; the difference in
mAP from the descriptor with its 95 % interval, landmarks drawn anew with all their queries;
milliseconds are of the CPU, from local features on: to what is stored of a photo, and to its scores
as a query with as many words per feature as HOW's.
"""

import argparse
import itertools
import pathlib
import subprocess
import sys
import time
from collections.abc import Callable, Sequence

import numpy as np
from ablation_table import bootstrap
from photo_scores import score_queries

from dolg_tf.data.own_photos import read_labels
from dolg_tf.retrieval import descriptors, scores
from dolg_tf.retrieval.asmk import build, lists, stages
from dolg_tf.retrieval.asmk.lists import Inverted
from dolg_tf.retrieval.asmk.search import Search
from dolg_tf.retrieval.extract.model import load_model
from dolg_tf.retrieval.ground_truth import GroundTruth, load_ground_truth
from dolg_tf.retrieval.local import feature_set

ALPHAS, ASSIGNMENTS, WEIGHTS = (1.0, 2.0, 3.0), (1, 5), (2.0, 4.0, 8.0, 16.0, 32.0, 64.0)
HOW = (3.0, 5)
TIMED = 30  # photos
DESCRIBED = 10  # photos


class Chain:
    """The commands, each of which is run where its output is not there yet."""

    def __init__(self, args: argparse.Namespace):
        self.args, self.work = args, pathlib.Path(args.work)
        self.work.mkdir(parents=True, exist_ok=True)

    def run(self, output: str, *words: str) -> pathlib.Path:
        path = self.work / output
        if not path.exists():
            command = [sys.executable, "-m", "dolg_tf", *words, f"--output={path}"]
            subprocess.run(command, check=True)
        return path

    def model(self) -> str:
        if self.args.saved_model:
            return self.args.saved_model
        return str(self.run("model", "export", "--backbone_weights=efficientnet_lite0"))

    def truth(self) -> tuple[str, str]:
        """Returns the ground truth and the folder of its photos."""
        if self.args.ground_truth:
            return self.args.ground_truth, self.args.image_root
        labels = f"--labels_csv={self.args.photos}/labels.csv"
        folder = self.run("truth", "ground-truth", labels)
        return str(next(folder.glob("gnd_*.pkl"))), self.args.photos

    def extract(self, name: str, *words: str) -> pathlib.Path:
        """Returns a descriptor set, beside which there is one of local features."""
        local = ["--local", f"--max_features={self.args.max_features}"]
        if self.args.local_scales:
            local.append(f"--local_scales={self.args.local_scales}")
        return self.run(name, "extract", f"--saved_model={self.model()}", *words, *local)

    def train(self) -> str:
        """Returns the local feature set from which words are learned."""
        if not self.args.train:
            return f"{self.work}/index.local"
        folder, listed = pathlib.Path(self.args.train), self.args.train
        if (folder / "labels.csv").exists():
            paths = [path for path, _ in read_labels(folder / "labels.csv")["train"]]
            listed = self.work / "train.csv"
            listed.write_text("path\n" + "".join(f"{path}\n" for path in paths))
        images = [f"--images={listed}", f"--image_root={folder}"]
        return f"{self.extract('train', *images, self.upright())}.local"

    def upright(self) -> str:
        truth = load_ground_truth(self.truth()[0])
        return "--upright" if truth.upright else "--noupright"

    def search(self, index: pathlib.Path, words: int, binary: bool) -> dict:
        """Returns the scores by (exponent, words per feature of a query), and bytes per photo."""
        book, kind = self.work / f"words{words}.npz", f"{words}_{'bits' if binary else 'real'}"
        if not book.exists():
            made = {"local": self.train(), "output": str(book), "words": words, "points": 64}
            stages.codebook(stages.CodebookConfig(**made))
        built, local = self.work / f"asmk_{kind}", f"{index}.local"
        if not built.exists():
            made = {"local": local, "codebook": str(book), "output": str(built), "binary": binary}
            stages.build(stages.BuildConfig(**made))
        size = sum((built / name).stat().st_size for name in ("codes.npy", "rows.npy"))
        asked = {"index": str(built), "local": f"{self.work}/query.local", "k": 0}
        opened = Inverted.open(built)
        found = {"bytes": size / len(opened), "ms": self.milliseconds(opened, local)}
        for alpha, count in itertools.product(ALPHAS, ASSIGNMENTS):
            path = self.work / f"scores_{kind}_{alpha:g}_{count}"
            if not path.exists():
                how = {"alpha": alpha, "assignments": count, "output": str(path)}
                stages.query(stages.QueryConfig(**asked, **how))
            found[alpha, count] = scores.read(path)
        return found

    def milliseconds(self, index: Inverted, local: str) -> tuple[float, float]:
        """Returns the CPU time of a photo, to what is stored of it and to its scores as a query."""
        features, kernel = feature_set.read(local), lists.kernel_of(index.meta)
        some = [features[row].descriptors for row in range(min(TIMED, len(features)))]
        search = Search(index, kernel)

        def store(one):
            return build.entries_of([one], index.codebook, kernel, index.meta["assignments"])

        def query(one):
            search.scores(*build.entries_of([one], index.codebook, kernel, HOW[1]))

        return spent(store, some), spent(query, some)

    def describing(self, root: str, ids: tuple[str, ...]) -> tuple[float, float]:
        """Returns the CPU time of a photo's descriptor and of its local features, milliseconds."""
        model = load_model(self.model())
        scales = [float(scale) for scale in self.args.local_scales.split(",") if scale]
        photos = [next(pathlib.Path(root).glob(f"{id_}.*")) for id_ in ids[:DESCRIBED]]
        return (
            spent(lambda photo: model.describe([photo]), photos),
            spent(
                lambda photo: model.local(
                    photo, scales=scales, max_features=self.args.max_features
                ),
                photos,
            ),
        )


def spent(call: Callable, photos: Sequence) -> float:
    """Returns the CPU time of a call, milliseconds; the first does not count."""
    call(photos[0])  # TensorFlow prepares itself
    start = time.process_time()
    for photo in photos:
        call(photo)
    return 1e3 * (time.process_time() - start) / len(photos)


class Judge:
    """Scores similarities against a ground truth: positives are easy and hard ones.

    Args:
      truth: the ground truth.
      plain: similarities of the descriptors, (Q, N), with which the others are compared.
    """

    def __init__(self, truth: GroundTruth, plain: np.ndarray):
        shape = len(truth.query_ids), len(truth.index_ids)
        self._same, self._junk = np.zeros(shape, bool), np.zeros(shape, bool)
        for row, query in enumerate(truth.queries):
            self._same[row, np.concatenate([query.easy, query.hard])] = True
            self._junk[row, query.junk] = True
        self._choose = np.arange(shape[0]) % 2 == 0
        # Queries of one landmark have the same photos to find.
        self._landmarks = np.unique(self._same | self._junk, axis=0, return_inverse=True)[1]
        self._plain = self.scores(plain, False)["AP"]

    def scores(self, similarities: np.ndarray, chosen_on: bool) -> dict[str, np.ndarray]:
        """Returns AP and hit at 1, percent, of the queries for choosing or of the others."""
        found = score_queries(np.where(self._junk, -np.inf, similarities), self._same)
        rows = self._choose == chosen_on
        return {key: 100 * np.array(found[key])[rows] for key in ("AP", "hit")}

    def best(self, candidates: dict):
        """Returns the key whose similarities have the highest mAP where settings are chosen."""
        return max(candidates, key=lambda key: self.scores(candidates[key], True)["AP"].mean())

    def line(self, name: str, similarities: np.ndarray, size: float, ms: tuple = (0, 0)) -> None:
        found = self.scores(similarities, False)
        landmarks = self._landmarks[~self._choose]
        more, (low, high) = bootstrap((found["AP"] - self._plain)[None], landmarks)
        means = f"{found['AP'].mean():.1f} | {more:+.1f} ({low:+.1f} to {high:+.1f})"
        cells = f"{means} | {found['hit'].mean():.1f} | {size:.0f} | {ms[0]:.0f} | {ms[1]:.0f}"
        print(f"| {name} | {cells} |", flush=True)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    for name in ("photos", "ground_truth", "image_root", "train", "saved_model", "local_scales"):
        parser.add_argument(f"--{name}", default="")
    parser.add_argument("--work", required=True)
    parser.add_argument("--words", type=int, nargs="+", default=[256, 1024, 4096])
    parser.add_argument("--max_features", type=int, default=1000)
    chain = Chain(parser.parse_args())
    pickle, root = chain.truth()
    images = [f"--images={pickle}", f"--image_root={root}"]
    sets = {name: chain.extract(name, *images, f"--subset={name}") for name in ("query", "index")}
    truth = load_ground_truth(pickle)
    queries, index = (descriptors.read(sets[name]) for name in ("query", "index"))
    plain = queries.select(truth.query_ids)[:] @ index.select(truth.index_ids)[:].T
    judge = Judge(truth, plain)
    described = chain.describing(root, truth.index_ids)
    print("CPU time of a photo: descriptor {:.0f} ms, local features {:.0f} ms".format(*described))
    print("| what | mAP | difference | R@1 | bytes per photo | ms to store | ms to query |")
    print("| --- | --- | --- | --- | --- | --- | --- |")
    judge.line("global descriptor", plain, 4 * queries.descriptors.shape[1])
    for binary in (True, False):
        found, sizes, ms = {}, {}, {}
        for words in chain.args.words:
            some = chain.search(sets["index"], words, binary)
            sizes[words], ms[words] = some.pop("bytes"), some.pop("ms")
            found |= {(words, *key): ordered(value, truth) for key, value in some.items()}
        kind = "bits" if binary else "real"
        how = judge.best({key: value for key, value in found.items() if key[1:] == HOW})
        judge.line(
            f"ASMK as HOW sets it, {kind}, {told(how)}", found[how], sizes[how[0]], ms[how[0]]
        )
        best = judge.best(found)
        judge.line(f"ASMK, {kind}, {told(best)}", found[best], sizes[best[0]], ms[best[0]])
        sums = {(*key, w): plain + w * one for key, one in found.items() for w in WEIGHTS}
        top = judge.best(sums)
        size = sizes[top[0]] + 4 * queries.descriptors.shape[1]
        judge.line(f"global + {top[3]:g} ASMK, {kind}, {told(top)}", sums[top], size, ms[top[0]])


def told(key: tuple) -> str:
    return f"{key[0]} words, alpha {key[1]:g}, {key[2]} per feature"


def ordered(found: scores.Scores, truth: GroundTruth) -> np.ndarray:
    """Returns scores with rows and columns as in a ground truth."""
    rows = [found.queries.index(id_) for id_ in truth.query_ids]
    columns = [found.ids.index(id_) for id_ in truth.index_ids]
    return np.asarray(found.scores)[np.ix_(rows, columns)]


if __name__ == "__main__":
    main()

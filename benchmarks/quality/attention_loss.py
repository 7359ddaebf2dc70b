"""Does a loss of its own for DOLG's attention give local features that verify photos better?

    python benchmarks/quality/attention_loss.py --photos=$DOLG_REAL_PHOTOS --output=runs/attention

Like `ablations.py`: the layers above frozen maps of an EfficientNet-Lite are trained on photos of
your own, here without a third of the landmarks, with each weight of `--attention_loss` and the same
seeds. Each photo keeps its strongest local features, whitened to 64 numbers by those of the index.
Mutual matches are verified by an affine map, and the best 50 photos of each query are ordered anew:
by inliers, or by score + weight x inliers, with the weight chosen on half of the queries and
reported on the other half. Seen: queries of trained landmarks. Unseen: of the others.
"""

import argparse
import pathlib

import keras
import numpy as np
import tensorflow as tf
from ablation_photos import SIDE, Maps, Splits, compute_maps
from ablations import BATCH, MARGIN, SCALE, adam, base_config, build_top
from photo_scores import score_queries

from dolg_tf.modeling.delg import AttentionLoss
from dolg_tf.modeling.heads import ArcFace
from dolg_tf.retrieval.local.features import LocalFeatures
from dolg_tf.retrieval.verification.pairs import Verifier, VerifyConfig
from dolg_tf.stage import files, progress

WEIGHTS = (0.0, 0.1, 1.0)
FEATURES, NUMBERS, TOP, CELL = 100, 64, 50, 16
INLIER_WEIGHTS = (0.0, 0.001, 0.002, 0.005, 0.01, 0.02, 0.05)
RATE = 1e-3


def train(model: keras.Model, names: list, maps: Maps, weight: float, steps: int, seed: int):
    """Trains the model of maps -> descriptors and local features."""
    descriptor, local = model.outputs
    classes, labels = np.unique(maps.landmarks, return_inverse=True)
    head = ArcFace(len(classes), MARGIN, SCALE)
    head.build((None, descriptor.shape[-1]))
    attention = AttentionLoss(len(classes), local.shape[-1], weight)
    variables = model.trainable_variables + head.trainable_variables
    variables += attention.classifier.trainable_variables if weight else []
    optimizer = adam(variables, RATE, steps)

    @tf.function(reduce_retracing=True)
    def step(inputs, targets):
        with tf.GradientTape() as tape:
            descriptors, f_local = model(inputs, training=True)
            logits = head.logits(head(descriptors), targets, training=True)
            losses = tf.nn.sparse_softmax_cross_entropy_with_logits(targets, logits)
            loss = tf.reduce_mean(losses)
            if weight:
                ones = tf.ones(tf.shape(targets))
                sums = attention.sums({"local": f_local}, targets, ones)
                loss += attention.total(sums) / len(targets)
        optimizer.apply(tape.gradient(loss, [v.value for v in variables]), variables)

    rng = np.random.default_rng(seed)
    wanted = Maps({name: maps.arrays[name] for name in names}, maps.landmarks)
    for _ in progress.track(range(steps), steps, f"weight {weight}, seed {seed}", "steps"):
        rows = rng.choice(len(labels), BATCH, replace=False)
        step(wanted.batch(rows, rng.integers(2, size=BATCH)), labels[rows].astype(np.int32))


def describe(model: keras.Model, names: list, maps: Maps) -> tuple[np.ndarray, np.ndarray]:
    """Returns unit descriptors (N, D) and float16 local features (N, h, w, C) of all photos."""
    call = tf.function(lambda inputs: model(inputs, training=False), reduce_retracing=True)
    wanted = Maps({name: maps.arrays[name] for name in names}, maps.landmarks)
    parts = []
    for start in range(0, len(maps.landmarks), BATCH):
        rows = np.arange(start, min(start + BATCH, len(maps.landmarks)))
        descriptors, f_local = call(wanted.batch(rows))
        parts.append((descriptors.numpy(), f_local.numpy().astype(np.float16)))
    descriptors, f_local = map(np.concatenate, zip(*parts, strict=True))
    return descriptors / np.linalg.norm(descriptors, axis=1, keepdims=True), f_local


def strongest(f_local: np.ndarray) -> list[LocalFeatures]:
    """Returns the strongest features of each photo, not reduced yet."""
    width, found = f_local.shape[2], []
    for cells in f_local.astype(np.float32).reshape(len(f_local), -1, f_local.shape[-1]):
        strengths = np.linalg.norm(cells, axis=1)
        kept = np.argsort(-strengths, kind="stable")[:FEATURES]
        positions = CELL * np.stack(np.divmod(kept, width), axis=1).astype(np.float32)
        unit = cells[kept] / strengths[kept, None]
        ones = np.ones(len(kept), np.float32)
        found.append(LocalFeatures(positions, ones, strengths[kept], unit, (SIDE, SIDE)))
    return found


def reduced(photos: list[LocalFeatures], mean, projection) -> list[LocalFeatures]:
    """Returns the features with whitened unit descriptors."""
    found = []
    for each in photos:
        rows = (each.descriptors - mean) @ projection
        rows /= np.linalg.norm(rows, axis=1, keepdims=True)
        found.append(LocalFeatures(each.positions, each.scales, each.strengths, rows, each.size))
    return found


def whitening(photos: list[LocalFeatures]) -> tuple[np.ndarray, np.ndarray]:
    """Returns mean (C,) and projection (C, 64) of a PCA whitening."""
    rows = np.concatenate([each.descriptors for each in photos])
    mean = rows.mean(0)
    values, vectors = np.linalg.eigh(np.cov(rows - mean, rowvar=False))
    kept = slice(-1, -NUMBERS - 1, -1)
    return mean, (vectors[:, kept] / np.sqrt(values[kept])).astype(np.float32)


def inliers_of(scores: np.ndarray, queries: list, index: list) -> np.ndarray:
    """Returns the inliers (Q, N) of each query's best photos; -1 elsewhere."""
    verifier = Verifier(VerifyConfig(match="mutual", plausible=True, ransac_trials=200))
    counts = np.full(scores.shape, -1)
    rows = progress.track(range(len(queries)), len(queries), "verifying", "queries")
    for query in rows:
        for photo in np.argsort(-scores[query], kind="stable")[:TOP]:
            counts[query, photo] = verifier.verify(queries[query], index[photo]).count
    return counts


def judge(scores, counts, same) -> dict[str, float]:
    """Returns mAP in percent of the three orders, and inliers of right and wrong photos."""
    chosen, reported = slice(0, None, 2), slice(1, None, 2)
    known = counts >= 0

    def precision(values, part):
        return 100 * np.mean(score_queries(values[part], same[part])["AP"])

    def added(weight):
        # Photos below the best ones stay below them.
        return np.where(known, 10 + scores + weight * np.minimum(counts, 50), scores)

    best = max(INLIER_WEIGHTS, key=lambda weight: precision(added(weight), chosen))
    return {
        "global": precision(scores, reported),
        "inliers": precision(np.where(known, 10 + counts + scores, scores), reported),
        "sum": precision(added(best), reported),
        "weight": best,
        "right": float(np.median(counts[known & same])),
        "wrong": float(np.median(counts[known & ~same])),
    }


def run(arguments) -> None:
    config, output = (
        base_config(arguments.backbone, arguments.width),
        pathlib.Path(arguments.output),
    )
    maps = compute_maps(pathlib.Path(arguments.photos), output / "maps", config)
    splits = Splits(maps, ())
    train_maps, _ = splits.outer("fold0")
    queries, index = maps["query"], maps["index"]
    same = index.landmarks == queries.landmarks[:, None]
    unseen = splits.folds[queries.landmarks] == 0
    path = output / "attention_loss.json"
    results = files.read_json(path) if path.exists() else {}
    for seed in range(arguments.seeds):
        for weight in WEIGHTS:
            key = f"{weight}/{seed}"
            if key in results:
                continue
            model, names = build_top(config, train_maps, seed, local=True)
            train(model, names, train_maps, weight, arguments.steps, seed)
            (ours, f_query), (theirs, f_index) = (
                describe(model, names, m) for m in (queries, index)
            )
            photos = strongest(f_index)
            learnt, scores = whitening(photos), ours @ theirs.T
            counts = inliers_of(
                scores, reduced(strongest(f_query), *learnt), reduced(photos, *learnt)
            )
            results[key] = {
                name: judge(scores[rows], counts[rows], same[rows])
                for name, rows in (("seen", ~unseen), ("unseen", unseen))
            }
            strengths = np.linalg.norm(f_index.astype(np.float32), axis=-1).reshape(
                len(f_index), -1
            )
            top_share = np.sort(strengths, 1)[:, -FEATURES:].sum(1) / strengths.sum(1)
            results[key]["share_of_strongest"] = float(top_share.mean())
            files.write_json(path, results)
            keras.backend.clear_session()
            print(key, results[key], flush=True)


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--photos", required=True, help="folder with labels.csv")
    parser.add_argument("--output", required=True)
    parser.add_argument("--backbone", default="efficientnet_lite0")
    parser.add_argument("--width", type=int, default=256, help="channels of the local features")
    parser.add_argument("--steps", type=int, default=200)
    parser.add_argument("--seeds", type=int, default=2)
    run(parser.parse_args())

"""Maps of the network over queries: what descriptors saw."""

from collections.abc import Iterator

from dolg_tf.apps.pictures import maps as descriptor_maps
from dolg_tf.apps.pictures import rankings
from dolg_tf.apps.pictures.ranked_list import maps_overlay
from dolg_tf.apps.report.figures.queries import name_and_ap, spread
from dolg_tf.apps.report.figures.style import slug
from dolg_tf.apps.report.page import Block, Picture
from dolg_tf.apps.report.run_files import Evaluation, RunFiles
from dolg_tf.retrieval.extract.decoding import Preparation, read_photo
from dolg_tf.retrieval.extract.model import LoadedModel

WORDS = (
    "Attention weighs each local feature. The orthogonal part of a local feature is what "
    "the global one does not explain; its norm says how much the fusion adds there. The "
    "share explained is that of the feature's energy."
)


def show(run: RunFiles, one: Evaluation, model: LoadedModel) -> Iterator[Block]:
    """Shows three maps over the best, a middle and the worst query."""
    chosen = spread(one, 3)
    photos, _ = rankings.photos_of_evaluation(
        one.files.ground_truth, one.image_root, one.inputs.protocol
    )
    for number, query in enumerate(chosen, 1):
        photo = read_photo(
            photos[query], Preparation.of(rankings.made_like(one.inputs.protocol, "query"))
        )
        maps = model.maps(photo)
        words = f"Query {name_and_ap(one, query)}"
        labelled = {label: maps[key] for key, label in descriptor_maps.MAPS.items()}
        yield Picture(
            f"saw_{slug(one.name)}_{number}",
            maps_overlay(photo, labelled, columns=2),
            descriptor_maps.describe_maps(words, maps),
            f"{words}, {one.name}.",
            wide=True,
            photographs=True,
        )

"""Why two photos match: lines where their local features agree on one view, and heat maps.

dolg match --saved_model=MODEL --photos=A.jpg,B.jpg --output=match.png
"""

import dataclasses
import logging
import pathlib
import textwrap
from collections.abc import Mapping, Sequence

import numpy as np

from dolg_tf.apps.pictures import heat_maps, verified
from dolg_tf.apps.pictures.agreement import Agreement, agreement
from dolg_tf.apps.pictures.names import PLAIN, shown
from dolg_tf.apps.pictures.ranked_list import encoded, new_figure
from dolg_tf.apps.pictures.verified import VerifiedPair
from dolg_tf.retrieval.exact.search import inner_products
from dolg_tf.retrieval.extract.decoding import Preparation, read_photo
from dolg_tf.retrieval.extract.model import LoadedModel, load_model
from dolg_tf.retrieval.extract.photos import Photo
from dolg_tf.retrieval.verification.pairs import Verifier, VerifyConfig
from dolg_tf.stage import config, files
from dolg_tf.stage.config import InputError, option

log = logging.getLogger(__name__)

SUFFIXES = (".jpg", ".pdf", ".png", ".svg")
MOST_FEATURES = 1000

# Sizes on the page, in inches; photos are higher where no heat maps stand below them.
_WIDTH, _HIGHEST, _HIGHER, _MARGIN, _GAP, _BAR = 8.0, 3.2, 4.4, 0.15, 0.35, 0.75
_TITLE, _CAPTION_LINE, _CAPTION_LETTERS = 0.25, 0.15, 118


@dataclasses.dataclass(frozen=True, kw_only=True)
class MatchConfig(VerifyConfig):
    """The photos to compare, and the network."""

    saved_model: str = option("SavedModel directory")
    photos: tuple[str, ...] = option("two photos, separated by a comma")
    output: str = option(f"picture to write: {', '.join(SUFFIXES)}")
    max_side: int = option(
        "shrink photos to this longest side; 0: never. With the value of the extraction, the "
        "similarity is that of a search",
        1024,
        unit="pixels",
    )
    max_features: int = option("local features of a photo, at most", MOST_FEATURES)
    overwrite: bool = option("replace an existing picture", False)

    def __post_init__(self):
        super().__post_init__()
        config.at_least(self, max_side=0, max_features=1)
        if len(self.photos) != 2:
            raise InputError(f"--photos={','.join(self.photos)} must be two photos, A.jpg,B.jpg")
        if pathlib.Path(self.output).suffix.lower() not in SUFFIXES:
            raise InputError(f"--output={self.output} must end in {', '.join(SUFFIXES)}")
        paths = [pathlib.Path(name).resolve() for name in (*self.photos, self.output)]
        if paths[2] in paths[:2]:
            raise InputError(f"--output={self.output} is one of the photos; name another file")


@dataclasses.dataclass(frozen=True)
class Compared:
    """What two photos have in common.

    Attributes:
      similarity: inner product of their descriptors; None: not told.
      verified: what their local features agree on; None: the export gives none.
      agreement: of the dense features of a network with a local branch; None: it has none.
    """

    similarity: float | None = None
    verified: VerifiedPair | None = None
    agreement: Agreement | None = None


def match(settings: MatchConfig):
    """Shows why two photos match: where their local features agree.

    The similarity of their descriptors and the number of matches go to the terminal, the picture of
    `draw` to the output.

    Returns:
      The matplotlib Figure.

    Raises:
      InputError: when a photo cannot be read, the model has no local features, or the output must
        not be replaced.
    """
    files.check_output(settings.output, settings.overwrite)
    new_figure(1, 1)  # says at once that matplotlib is missing
    images = [read_photo(path, Preparation(settings.max_side)) for path in settings.photos]
    model = load_model(settings.saved_model)
    found = compare(
        model, settings.photos, settings.max_side, Verifier(settings), settings.max_features
    )
    log.info("similarity of the descriptors %.4f", found.similarity)
    if found.verified is not None:
        log.info("%s", verified.describe(found.verified))
    if found.agreement is not None:
        log.info("strongest agreement of two cells %.4f", found.agreement.a.max())
    figure = draw(images, found, [pathlib.Path(path).name for path in settings.photos])
    kind = pathlib.Path(settings.output).suffix[1:].lower()
    files.write_bytes(settings.output, encoded(figure, kind))
    return figure


def compare(
    model: LoadedModel,
    photos: Sequence[files.Path],
    max_side: int,
    verifier: Verifier | None = None,
    max_features: int = MOST_FEATURES,
) -> Compared:
    """Compares two photos.

    Args:
      model: of any mode that gives local features.
      photos: their files.
      max_side: they are shrunk to this longest side; 0: never.
      verifier: with its settings; None: the default ones.
      max_features: of a photo.

    Returns:
      Similarity at the model's scales, verified matches, and agreement where the network has a
      local branch.

    Raises:
      InputError: when a photo cannot be read, or the model gives no local features.
    """
    like = {"max_side": max_side, "upright": True}
    rows = np.concatenate([model.describe([photo], like=like) for photo in photos])
    similarity = float(inner_products(rows[0], rows[1:])[0])
    found = compare_local(model, photos, (like, like), verifier, max_features)
    return dataclasses.replace(found, similarity=similarity)


def compare_local(
    model: LoadedModel,
    photos: Sequence[Photo | files.Path],
    likes: Sequence[Mapping],
    verifier: Verifier | None = None,
    max_features: int = MOST_FEATURES,
) -> Compared:
    """Compares the local features of two photos; see `compare`.

    Args:
      model, photos, verifier, max_features: as for `compare`.
      likes: how either photo is shrunk, as the metadata of a descriptor set say it.
    """
    if not (model.has_local or model.has_maps):
        raise InputError(
            f"--saved_model={model.path} gives no local features: export it again, with "
            "--mode=serving, or with --mode=delg and --features=both"
        )
    pair = found = None
    if model.has_local:
        features = [
            model.local(photo, max_features=max_features, like=like)
            for photo, like in zip(photos, likes, strict=True)
        ]
        verifier = verifier or Verifier(VerifyConfig())
        pair = VerifiedPair(*features, verifier.verify(*features))
    if model.has_maps:
        images = map(read_photo, photos, map(Preparation.of, likes))
        found = agreement(*map(model.local_features, images))
    return Compared(None, pair, found)


# --- the picture ---------------------------------------------------------------------


def draw(
    photos: Sequence[np.ndarray],
    compared: Compared,
    names: Sequence[str] = ("", ""),
):
    """Draws two photos, joined by lines where they agree.

    Lines over the photos join verified matches. Below these, for a network with a local branch,
    lines over heat maps join places that both photos attend to. The heat maps have one scale from 0
    to 1, which is also that of every other pair of photos: where nothing agrees, they stay dark.

    Args:
      photos: two, uint8 RGB (H, W, 3); they keep their aspects, at one height.
      compared: what they have in common.
      names: titles of the photos; empty: no titles.

    Returns:
      A matplotlib Figure.
    """
    found, pair = compared.agreement, compared.verified
    aspects = [image.shape[1] / image.shape[0] for image in photos]
    bar = 0 if found is None else _BAR
    highest = _HIGHER if found is None else _HIGHEST
    high = min(highest, (_WIDTH - 2 * _MARGIN - _GAP - bar) / sum(aspects))
    wides = [aspect * high for aspect in aspects]
    caption = _caption(compared)
    top = _MARGIN + _TITLE * (compared.similarity is not None) + _TITLE * any(names)
    bottom = _MARGIN + _CAPTION_LINE * len(caption) + _MARGIN
    lows = [bottom + (high + _MARGIN) * (found is not None), bottom]  # of photos, of heat maps
    figure = new_figure(_WIDTH, lows[0] + high + top)
    height = figure.get_size_inches()[1]
    first = (_WIDTH - bar - _GAP - sum(wides)) / 2
    lefts = (first, first + wides[0] + _GAP)

    def add_axes(left: float, low: float, wide: float):
        return figure.add_axes((left / _WIDTH, low / height, wide / _WIDTH, high / height))

    panels = []
    for left, wide, image, name in zip(lefts, wides, photos, names, strict=True):
        panels.append(add_axes(left, lows[0], wide))
        panels[-1].imshow(image, aspect="auto")
        panels[-1].set_axis_off()
        title = {"fontsize": 8, "color": "#333333", "pad": 4, **PLAIN}
        panels[-1].set_title(shown(name, max(8, int(wide * 14))), **title)
    if pair is not None:
        verified.draw(figure, panels, photos, pair)
    if found is not None:
        maps = [add_axes(left, bottom, wide) for left, wide in zip(lefts, wides, strict=True)]
        scale = add_axes(lefts[1] + wides[1] + 0.15, bottom, 0.13)
        heat_maps.draw(figure, maps, scale, photos, found)
    if compared.similarity is not None:
        middle = (lefts[0] + lefts[1] + wides[1]) / 2 / _WIDTH
        title = f"similarity of the descriptors {compared.similarity:.3f}"
        figure.text(middle, 1 - _MARGIN / height, title, ha="center", va="top", fontsize=11)
    place = _MARGIN / _WIDTH, (bottom - _MARGIN) / height
    figure.text(*place, "\n".join(caption), va="top", fontsize=7.5, color="#333333")
    return figure


def describe_match(compared: Compared) -> str:
    """Returns in words what `draw` draws."""
    parts = []
    if compared.verified is not None:
        parts.append(verified.describe(compared.verified))
    if compared.agreement is not None:
        parts.append(heat_maps.describe(compared.agreement))
    return " ".join(parts)


def _caption(compared: Compared) -> list[str]:
    """Returns the lines below the picture."""
    parts = []
    if compared.verified is not None:
        parts.append(verified.caption(compared.verified))
    if compared.agreement is not None:
        parts.append(heat_maps.caption(compared.agreement))
    return [line for part in parts for line in textwrap.wrap(part, _CAPTION_LETTERS)]

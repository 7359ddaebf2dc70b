"""The layout of a quickstart run: the pipeline writes it, the report reads it."""

import dataclasses
import pathlib

# variant: (name in the table, what it is)
VARIANTS = {
    "trained": ("trained DOLG", "the network after training"),
    "untrained": ("untrained DOLG", "the same network before its first step"),
    "colour_histogram": (
        "colour histogram",
        "no network: square roots of a joint 8 x 8 x 8 RGB histogram",
    ),
}
SPLITS = {
    "seen": "landmarks of the training set, other photos",
    "unseen": "landmarks that were never trained on",
}

# Where a quickstart keeps what a flag of the report would name.
PLACES = {
    "ground_truth": "photos/gnd_*.pkl",
    "query_descriptors": "descriptors/trained/*/{seen,unseen}",
    "index_descriptors": "descriptors/trained/*/index",
    "scores": "scores/trained_*.json",
    "saved_model": "saved_model/trained",
}


@dataclasses.dataclass(frozen=True)
class QuickstartLayout:
    """Paths below the output folder of a quickstart.

    Attributes:
      root: the output folder.
    """

    root: pathlib.Path

    @property
    def photos(self) -> pathlib.Path:
        """The procedural photos."""
        return self.root / "photos"

    @property
    def records(self) -> pathlib.Path:
        """Folder of the TFRecords."""
        return self.root / "records"

    @property
    def training(self) -> pathlib.Path:
        """Run directory of the training."""
        return self.root / "train"

    @property
    def untrained(self) -> pathlib.Path:
        """Model directory of the network before its first step."""
        return self.root / "untrained"

    def ground_truth(self, split: str) -> pathlib.Path:
        """Returns the ground truth of a split."""
        return self.photos / f"gnd_{split}.pkl"

    def saved_model(self, variant: str) -> pathlib.Path:
        """Returns the SavedModel of a variant."""
        return self.root / "saved_model" / variant

    def descriptors(self, variant: str, weights_sha256: str = "") -> pathlib.Path:
        """Returns the folder of a variant's descriptor sets, `index` and one for each split.

        Args:
          variant: one of `VARIANTS`.
          weights_sha256: of the SavedModel that described them; "" for one without a network.
        """
        return self.root / "descriptors" / variant / weights_sha256[:12]

    def scores(self, variant: str, split: str) -> pathlib.Path:
        """Returns the report.json of an evaluation."""
        return self.root / "scores" / f"{variant}_{split}.json"

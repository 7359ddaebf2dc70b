"""The PCA that DELF's models bring -> a reduction of local features, an .npz as of `fit --local`.

DELF divides a feature by its norm, subtracts the mean, takes the first rows of the projection,
divides by the standard deviations if asked (`use_whitening`), and by the norm again. So does a
reduction.

Reference: `DelfFeaturePostProcessing` and `ApplyPcaAndWhitening` in research/delf,
`feature_extractor.py`.
"""

import dataclasses
import logging
import pathlib

import numpy as np

from dolg_tf.retrieval import datum_io
from dolg_tf.runtime.whitening import write_whitening
from dolg_tf.stage import config, files
from dolg_tf.stage.config import InputError, option

log = logging.getLogger(__name__)

MEAN, PROJECTION = "mean.datum", "pca_proj_mat.datum"


@dataclasses.dataclass(frozen=True, kw_only=True)
class ImportConfig:
    """Which PCA of DELF is read, and how much of it."""

    datum: str = option(f"folder of DELF's {MEAN} and {PROJECTION}")
    variances: str = option(
        "DELF's .datum of variances, for features whitened by them; empty: not whitened", ""
    )
    dimensions: int = option("length of the reduced features, DELF's pca_dim", 128)
    output: str = option("reduction to write, an .npz")
    overwrite: bool = option("replace an existing output", False)

    def __post_init__(self):
        config.at_least(self, dimensions=1)
        if not self.output.endswith(".npz"):
            raise InputError(f"--output={self.output} must end in .npz")


def convert(settings: ImportConfig) -> None:
    """Reads DELF's PCA of local features: .datum files in, .npz out.

    Raises:
      InputError: when a file is missing or damaged, or they do not fit each other.
    """
    files.check_output(settings.output, settings.overwrite)
    folder = pathlib.Path(settings.datum)
    if not folder.is_dir():
        raise InputError(f"--datum={folder}: no such folder")
    mean, matrix = datum_io.read(folder / MEAN).ravel(), datum_io.read(folder / PROJECTION)
    if matrix.ndim != 2 or matrix.shape[1] != len(mean):
        raise InputError(
            f"{folder}: {PROJECTION} of shape {matrix.shape} does not fit {MEAN} of {len(mean)} "
            "numbers; its rows must be as long"
        )
    kept = settings.dimensions
    if kept > min(matrix.shape):
        raise InputError(f"--dimensions={kept}: {PROJECTION} has {min(matrix.shape)}; give fewer")
    rows = matrix[:kept]
    if settings.variances:
        variances = datum_io.read(settings.variances).ravel()[:kept]
        if len(variances) < kept or not (variances > 0).all():
            raise InputError(
                f"--variances={settings.variances} must hold {kept} numbers or more, above 0"
            )
        rows = rows / np.sqrt(variances)[:, None]
    write_whitening(settings.output, mean, rows.T, "")
    log.info("%s: length %d to %d", settings.output, len(mean), kept)

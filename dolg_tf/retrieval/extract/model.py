"""SavedModels that describe photos: ours, or another DELG extractor.

`open_describer` reads a model's identity, `load_model` loads the model. It runs on TensorFlow's C
library, so that neither waits for `import tensorflow`.
"""

import dataclasses
import hashlib
import logging
import os
import pathlib
from collections.abc import Callable, Iterable, Mapping, Sequence

import numpy as np

from dolg_tf.data.scales import LOCAL_SCALES, SCALE_SETS
from dolg_tf.retrieval.extract import ahead, batches, decoding
from dolg_tf.retrieval.extract.photos import Photo
from dolg_tf.retrieval.local import calls
from dolg_tf.retrieval.local.features import LocalFeatures
from dolg_tf.retrieval.local.making import LocalOf
from dolg_tf.runtime import export_files
from dolg_tf.runtime.session import CppSession
from dolg_tf.runtime.signatures import Signature
from dolg_tf.stage import files, workshop
from dolg_tf.stage.config import InputError

Describe = Callable[[np.ndarray], np.ndarray]
_SUMMED = 1000  # local features that describe a photo where there is no descriptor
_BATCH = 16  # photos of equal size that are described together
_DELG = {"input_image", "input_scales", calls.INDICES}

log = logging.getLogger(__name__)


@dataclasses.dataclass(frozen=True)
class Describer:
    """A way of describing photos, before anything is loaded.

    Attributes:
      model_hash: identifies the model.
      scales: of a photo; the descriptors of all scales are averaged.
      whitening: the whitening in the model, as `dolg.json` has it; None: there is none.
      load: returns uint8 RGB (B, H, W, 3) -> float32 (B, D), rows of unit L2 norm; slow.
      local: what `dolg.json` says of local features: their kind, `dimensions`, `scales`,
        `threshold`, `reduction`; None: nothing.
      load_both: returns what `load` does, and what finds local features; slow.
    """

    model_hash: str
    scales: tuple[float, ...]
    whitening: dict | None
    load: Callable[[], Describe]
    local: dict | None = None
    load_both: Callable[[], tuple[Describe, LocalOf]] | None = None


def open_describer(saved_model: files.Path, scales: tuple[float, ...]) -> Describer:
    """Opens a SavedModel of mode `serving` or `delg`, without loading TensorFlow.

    A DELG extractor that is not ours has no `assets.extra/dolg.json`; a hash of its files
    identifies it.

    Args:
      saved_model: the directory.
      scales: of the photos; empty: those that the model was exported with.

    Raises:
      InputError: when there is no SavedModel, or no scales are known.
    """
    path = pathlib.Path(saved_model)
    if not workshop.recover(path / "saved_model.pb"):
        raise InputError(f"--saved_model={path}: no SavedModel there; `dolg export` writes one")
    info = export_files.read_about(path)
    if info is not None:
        _check_about(info, path / export_files.ABOUT)
    elif scales:
        info = {"scales": scales, "weights_sha256": _hash_files(path)}
    else:
        raise InputError(
            f"--saved_model={path} has no assets.extra/dolg.json, so its scales are unknown; "
            f"give them, such as --scales={','.join(map(str, SCALE_SETS['three']))}"
        )
    describer = Describer(
        model_hash=info["weights_sha256"],
        scales=tuple(scales or info["scales"]),
        whitening=info.get("whitening"),
        load=lambda: _load(path, describer).describe,
        local=info.get("local"),
        load_both=lambda: _load(path, describer).both(),
    )
    return describer


def _check_about(info: dict, source: pathlib.Path) -> None:
    """Makes sure that a model says by what it is identified, and how it describes photos."""
    for key in ("scales", "weights_sha256"):
        if not info.get(key):
            raise InputError(f"{source}: no {key!r}; {export_files.REMEDY}")
    sound = isinstance(info["weights_sha256"], str) and isinstance(info["scales"], list)
    sound = sound and all(
        type(scale) in (int, float) and 0 < scale < float("inf") for scale in info["scales"]
    )
    sound = sound and isinstance(info.get("whitening"), dict | None)
    if not (sound and _sound_local(info.get("local"))):
        raise InputError(f"{source}: damaged; {export_files.REMEDY}")


def _sound_local(local) -> bool:
    if local is None:
        return True
    if not isinstance(local, dict) or not isinstance(local.get("scales"), list):
        return False
    return all(type(x) in (int, float) for x in (local.get("threshold"), *local["scales"]))


def _hash_files(saved_model: pathlib.Path) -> str:
    digest = hashlib.sha256()
    variables = sorted((saved_model / "variables").glob("*"))
    for file in (saved_model / "saved_model.pb", *variables):
        digest.update(f"{file.name} {files.sha256(file)}\n".encode())
    return digest.hexdigest()


class LoadedModel:
    """A SavedModel in memory, from `load_model`; several threads may use it at once.

    A photo is the path of a JPEG, PNG, GIF, BMP or WebP file, a `Photo`, or uint8 RGB (H, W, 3).

    Args:
      path: the directory.
      about: the model's identity and scales.
      session: runs the signature `images`, or that of DELG's extractor.
    """

    def __init__(self, path: pathlib.Path, about: Describer, session: CppSession):
        self.path, self.about = path, about
        self._session, self._local = session, calls.find_call(session.signatures)
        self._warned = False

    def describe(
        self,
        photos: np.ndarray | Iterable[np.ndarray | Photo | files.Path],
        scales: Sequence[float] = (),
        *,
        like: Mapping | None = None,
    ) -> np.ndarray:
        """Returns the descriptors of photos, as extraction stores them.

        Args:
          photos: a list of photos of any sizes, which are read ahead, turned and shrunk as `like`
            says, and described in batches; or uint8 RGB (N, H, W, 3), described as it is, as a
            single batch.
          scales: of the photos; their descriptors are averaged. Empty: those of `like`, or else of
            `about`.
          like: the metadata of an index or a descriptor set, `index.meta`: photos are described as
            its own were. None: as extraction does without options, upright, and shrunk to 1024
            pixels if larger.

        Returns:
          float32 (N, D), rows of unit L2 norm, in the order of the photos.

        Raises:
          InputError: when a photo cannot be read or is not uint8 RGB, or there are no photos.
        """
        scales = tuple(scales or (like or {}).get("scales") or self.about.scales)
        if isinstance(photos, np.ndarray):
            if photos.dtype != np.uint8 or photos.ndim != 4 or photos.shape[-1] != 3:
                raise InputError(
                    f"photos are {photos.dtype} {photos.shape}; give uint8 RGB (N, H, W, 3), or a "
                    "list of photos"
                )
            return self._describe(photos, scales)
        if isinstance(photos, str | os.PathLike | Photo):
            raise InputError(f"{photos} is a single photo; give a list of photos")
        photos = list(photos)
        if not photos:
            raise InputError("there are no photos to describe; give at least one")
        how = decoding.DEFAULT if like is None else decoding.Preparation.of(like)
        images = enumerate(ahead.read_ahead(photos, how))
        rows, _ = batches.describe_batches(
            images, lambda batch: self._describe(batch, scales), len(photos), _BATCH
        )
        return rows

    def both(self) -> tuple[Describe, LocalOf]:
        """Returns what describes photos, and what finds their local features."""
        return self.describe, self.local_of

    def _describe(self, images: np.ndarray, scales: tuple[float, ...]) -> np.ndarray:
        """Returns float32 (B, D) of uint8 (B, H, W, 3).

        Raises:
          MemoryError: when they are too large for the memory.
        """
        scales = np.asarray(scales, np.float32)
        if "images" in self._session.signatures:
            return self._run("images", {"images": images, "scales": scales})["descriptors"]
        return np.stack([self._describe_by_delg(image, scales) for image in images])

    def _describe_by_delg(self, image: np.ndarray, scales: np.ndarray) -> np.ndarray:
        """DELG's extractor takes one photo and returns a row per scale, for its user to average."""
        inputs = {"input_image": image, "input_scales": scales}
        if self._local is not None:  # no local features: nothing is so strong
            inputs = self._local.inputs(image, scales, 0, np.inf)
        if self._local is not None and not self._local.indices:
            # DELF's gives local features alone. They are summed as HOW's are.
            found = self._local_of(image, tuple(scales), _SUMMED, 0.0)
            return _unit((found.strengths[:, None] * found.descriptors).sum(0))
        inputs[calls.INDICES] = np.arange(len(scales), dtype=np.int32)
        rows = self._run("serving_default", inputs)
        return _unit(_unit(rows["global_descriptors"]).sum(0))

    @property
    def has_local(self) -> bool:
        """Whether `local` works: not with exports of before its signature."""
        return self._local is not None

    def local(
        self,
        photo: np.ndarray | Photo | files.Path,
        *,
        scales: Sequence[float] = (),
        max_features: int = 1000,
        threshold: float | None = None,
        like: Mapping | None = None,
    ) -> LocalFeatures:
        """Returns the local features of a photo, the strongest first.

        Args:
          photo: is read, turned and shrunk as by `describe`; positions are in its pixels before it
            was shrunk.
          scales: at which it is looked at; empty: those of the export, or else DELG's seven.
          max_features: the most features of all scales together.
          threshold: the least strength of a feature; None: that of the export, or else 0.
          like: see `describe`.

        Raises:
          InputError: when the photo cannot be read, or the model gives no local features.
        """
        how = decoding.DEFAULT if like is None else decoding.Preparation.of(like)
        image, size = decoding.read_prepared(photo, how)
        found = self.local_of(image, scales, max_features, threshold)
        factors = np.divide(size, image.shape[:2], dtype=np.float32)
        return dataclasses.replace(found, positions=found.positions * factors, size=size)

    def local_of(
        self,
        image: np.ndarray,
        scales: Sequence[float] = (),
        max_features: int = 1000,
        threshold: float | None = None,
    ) -> LocalFeatures:
        """Returns the local features of pixels as they are, uint8 RGB (H, W, 3); see `local`."""
        about = self.about.local or {}
        scales = tuple(scales or about.get("scales") or LOCAL_SCALES)
        threshold = about.get("threshold", 0.0) if threshold is None else threshold
        _check_numbers(scales, max_features, threshold)
        found = self._local_of(image, scales, max_features, threshold)
        if not len(found) and max_features and not self._warned:
            self._warned = True
            strongest = self._local_of(image, scales, 1, -np.inf).strengths.max(initial=0)
            log.warning(
                "%s: a photo has no local feature of strength %g or more, its strongest has %.3g; "
                "if this is the rule, the threshold belongs to other weights: give another",
                *(self.path, threshold, strongest),
            )
        return found

    def _local_of(
        self, image: np.ndarray, scales: tuple[float, ...], max_features: int, threshold: float
    ) -> LocalFeatures:
        call = self._local
        if call is None:
            self._check_signature("local")
        inputs = call.inputs(image, scales, max_features, threshold)
        return call.features(self._run(call.signature, inputs), image.shape[:2])

    def _run(self, signature: str, inputs: Mapping[str, np.ndarray]) -> dict[str, np.ndarray]:
        try:
            return self._session.run(signature, inputs)
        except RuntimeError as error:
            message = " ".join(str(error).split())
            raise InputError(
                f"--saved_model={self.path} fails in TensorFlow's C++ loader, that of TF Serving, "
                f"in the signature {signature!r}: {message:.300}; export it again"
            ) from error

    @property
    def has_maps(self) -> bool:
        """Whether `maps` works: not in mode `delg`, nor without a local branch."""
        return "maps" in self._session.signatures

    def maps(self, photo: np.ndarray | Photo | files.Path) -> dict[str, np.ndarray]:
        """Returns the maps of the local branch over a photo.

        Returns:
          `attention`, `orthogonal_norm` and `explained_energy`, float32 (h, w) each, a cell per
          16 x 16 pixels.

        Raises:
          InputError: when the photo cannot be read, or the network has no local branch.
        """
        return self._of_local_branch("maps", photo)

    def local_features(self, photo: np.ndarray | Photo | files.Path) -> np.ndarray:
        """Returns the local features of a photo: attention times a unit vector.

        Returns:
          float32 (h, w, C), a cell per 16 x 16 pixels.

        Raises:
          InputError: when the photo cannot be read, the network has no local branch, or the export
            is older than this signature.
        """
        return self._of_local_branch("local_features", photo)["features"]

    def _of_local_branch(
        self, signature: str, photo: np.ndarray | Photo | files.Path
    ) -> dict[str, np.ndarray]:
        self._check_signature(signature)
        return self._run(signature, {"image": decoding.read_photo(photo)})

    def _check_signature(self, signature: str) -> None:
        there = sorted(self._session.signatures)
        if signature not in there:
            where = f"--saved_model={self.path} has no signature {signature!r}"
            if "images" not in there:
                raise InputError(f"{where}, only {there}; export it with --mode=serving")
            if "maps" in there:
                raise InputError(
                    f"{where}: it was exported before this signature existed; export it again with "
                    "`dolg export`"
                )
            raise InputError(
                f"{where}: its network has no local branch (--fusion=global_only), so there is no "
                "attention to show; use a network that has one"
            )


def _check_numbers(scales: tuple[float, ...], max_features: int, threshold: float) -> None:
    if not all(0 < scale < float("inf") for scale in scales):
        raise InputError(f"scales {scales} must be above 0")
    if max_features < 0:
        raise InputError(f"max_features is {max_features}; it must be 0 or more")
    if np.isnan(threshold):
        raise InputError(f"threshold is {threshold}; it must be a number")


def load_model(saved_model: files.Path, scales: Sequence[float] = ()) -> LoadedModel:
    """Loads a SavedModel of mode `serving` or `delg`, or another DELG extractor.

    Args:
      saved_model: the directory.
      scales: of the photos; their descriptors are averaged. Empty: those of the export.

    Raises:
      InputError: when there is no such SavedModel, or no scales are known.

    Example:
      model = load_model("models/mine/1")
      a, b = model.describe(["a.jpg", "b.jpg"])
      similarity = a @ b
    """
    return _load(pathlib.Path(saved_model), open_describer(saved_model, tuple(scales)))


def _load(path: pathlib.Path, about: Describer) -> LoadedModel:
    with export_files.loading(path):
        session = CppSession(path)
    if "images" not in session.signatures:
        _check_delg(path, session.signatures)
    return LoadedModel(path, about, session)


def _check_delg(path: pathlib.Path, signatures: Mapping[str, Signature]) -> None:
    """Makes sure that a model is an extractor of DELG's."""
    call, local = signatures.get("serving_default", Signature({}, {})), calls.find_call(signatures)
    describes = local.indices if local else set(call.inputs) == _DELG
    if (describes and "global_descriptors" in call.outputs) or (local and not local.indices):
        return
    raise InputError(
        f"--saved_model={path} has no signature 'images', only {sorted(signatures)}, and is not an "
        "extractor of DELG's descriptors; `dolg export --mode=serving` writes one"
    )


def _unit(rows: np.ndarray) -> np.ndarray:
    """Returns rows of unit L2 norm; a row of zeros stays zero."""
    return rows / np.sqrt(np.maximum((rows * rows).sum(-1, keepdims=True), 1e-12))

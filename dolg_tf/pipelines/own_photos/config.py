"""Which photos are searched, for what, and where that is kept."""

import dataclasses

from dolg_tf.stage.config import InputError, at_least, option, words

DEFAULT_MODEL = "efficientnet_lite0"


@dataclasses.dataclass(frozen=True, kw_only=True)
class SearchConfig:
    """Your photos, and what is searched for in them."""

    photos: tuple[str, ...] = words("folders of photos, which are searched with all folders below")
    query: str = option(
        "photo to look for, or a folder or a CSV (column path) of such photos: the answers go to "
        "the terminal and to a CSV; empty: open a page to search in",
        "",
    )
    k: int = option("photos found for each query, at most", 10)
    output: str = option(
        "ends in .csv: the answers (query, rank, id, score and match), found.csv in the kept "
        "folder by default; otherwise: the same as --kept",
        "",
    )
    kept: str = option(
        "folder that keeps what is made of the photos, for the next search; empty: one in your "
        "data folder, named after the photos",
        "",
    )
    model: str = option(
        "what describes the photos: efficientnet_lite0 or efficientnet_lite2 (pip packages), a "
        "preset of KerasHub, or a SavedModel of `dolg export`",
        DEFAULT_MODEL,
    )
    learn: bool = option(
        "train on labels: folders of landmarks (PHOTOS/landmark/x.jpg), or a labels.csv there with "
        "the columns path and landmark; some landmarks are kept out, and the trained network is "
        "used from then on if it finds no fewer photos of either kind",
        False,
    )
    verify: bool = option(
        "order the best photos of --query by the local features that agree on one view, too: worth "
        "it for photos of 600 pixels and more; the features are found once, and kept",
        False,
    )
    forget: bool = option("delete the kept folder, and nothing else", False)
    port: int = option("port of the page, on this machine alone", 7860)

    def __post_init__(self):
        at_least(self, k=1, port=1)
        if self.port > 65535:
            raise InputError(f"--port={self.port} must be at most 65535")
        if not self.photos:
            raise InputError("which photos? Name a folder: dolg search PHOTOS")
        if self.answers and not self.query and not self.forget:
            raise InputError(
                f"--output={self.output}: answers to what? Name a photo by --query, or a folder by "
                "--output"
            )
        if self.verify and not self.query and not self.forget:
            raise InputError("--verify orders the answers to --query; name a photo, or omit it")
        if self.output and self.kept and not self.answers:
            raise InputError(
                f"--output={self.output} and --kept={self.kept} both name the kept folder; a file "
                "of answers ends in .csv"
            )

    @property
    def answers(self) -> str:
        """The file of answers that was asked for; empty: the default."""
        return self.output if self.output.lower().endswith(".csv") else ""

    @property
    def folder(self) -> str:
        """The kept folder that was asked for; empty: the default."""
        return self.kept or ("" if self.answers else self.output)

"""A page on this machine that searches photos for the one that a visitor drops on it.

dolg demo --saved_model=MODEL --index=INDEX
"""

import contextlib
import ctypes
import dataclasses
import logging
import socket
import threading
from collections.abc import Iterator
from typing import TYPE_CHECKING

from dolg_tf.stage import installed
from dolg_tf.stage.config import InputError, at_least, option

if TYPE_CHECKING:
    from dolg_tf.apps.demo.collection import Collection

log = logging.getLogger(__name__)

_NEEDED = ("demo", "the page", "jinja2", "starlette", "uvicorn")
_MMAP_THRESHOLD, _ARENA_MAX = -3, -8  # of mallopt(3)


@dataclasses.dataclass(frozen=True, kw_only=True)
class PageConfig:
    """Where the page is, and what visitors may ask for."""

    port: int = option("port of the page on 127.0.0.1", 7860)
    max_bytes: int = option("largest file that is accepted", 20 * 2**20, unit="bytes")
    max_pixels: int = option(
        "largest photo that is accepted, by its header", 50_000_000, unit="pixels"
    )
    max_seconds: float = option("longest time that an answer may take", 60.0, unit="s")

    def __post_init__(self):
        at_least(self, port=1, max_bytes=1, max_pixels=1, max_seconds=0.1)
        if self.port > 65535:
            raise InputError(f"--port={self.port} must be at most 65535")


@dataclasses.dataclass(frozen=True, kw_only=True)
class DemoConfig(PageConfig):
    """What is searched, and what visitors may ask for."""

    saved_model: str = option("SavedModel that described the photos of the index")
    index: str = option("index (a directory)")
    image_root: str = option(
        "folder with the photos of the index; empty: where they were when they were described", ""
    )
    max_side: int = option(
        "visitors' photos are shrunk to this longest side before they are described, 2048 at most; "
        "0: as the photos of the index were",
        0,
        unit="pixels",
    )

    def __post_init__(self):
        super().__post_init__()
        at_least(self, max_side=0)


def _steady_memory() -> None:
    """Has the memory of photos go back to the system once they are freed.

    The heaps that glibc keeps for many threads would hold on to it: a gigabyte within minutes.
    """
    with contextlib.suppress(OSError, AttributeError):  # another C library
        library = ctypes.CDLL(None)
        library.mallopt(_MMAP_THRESHOLD, 2**20)
        library.mallopt(_ARENA_MAX, 2)


def _listen(port: int) -> socket.socket:
    try:
        return socket.create_server(("127.0.0.1", port), backlog=64)
    except OSError as error:
        raise InputError(
            f"--port={port} cannot be used ({error.strerror}); choose another --port"
        ) from error


def check(port: int) -> None:
    """Makes sure that a page can be served, before anything long begins.

    Raises:
      InputError: when the port is taken, or a package is missing.
    """
    installed.need(*_NEEDED)
    _listen(port).close()


@contextlib.contextmanager
def showing(collection: "Collection", settings: PageConfig) -> Iterator[str]:
    """Serves the page of a collection while the block runs and yields its address.

    Raises:
      InputError: when the port is taken, or a package is missing.
    """
    installed.need(*_NEEDED)
    from dolg_tf.apps.demo import server
    from dolg_tf.apps.demo.page import Page
    from dolg_tf.apps.demo.search import Engine
    from dolg_tf.apps.demo.turns import Turns

    _steady_memory()
    with contextlib.ExitStack() as stack:
        listening = stack.enter_context(_listen(settings.port))
        engine = Engine(collection, settings.max_bytes, settings.max_pixels)
        turns = Turns(settings.max_seconds)
        app = server.application(Page(engine, turns, settings.max_bytes), turns, settings.port)
        stack.enter_context(server.serve(app, listening))
        yield f"http://127.0.0.1:{settings.port}"


def demo(settings: DemoConfig) -> None:
    """Serves a page that searches an index for photos, until it is interrupted.

    Visitors drop a photo, draw a box, and see the nearest photos of the index, with scores and what
    the network looked at. It answers this machine only; from another one, `ssh -L` leads to it.

    Raises:
      InputError: when the index belongs to another model, the port is taken, or a package is
        missing.
    """
    check(settings.port)
    from dolg_tf.apps.demo.indexed import IndexedPhotos

    collection = IndexedPhotos(
        settings.saved_model, settings.index, settings.image_root, settings.max_side
    )
    collection.check_photos()
    log.info("%s: loading the model ...", settings.index)
    collection.load()
    with showing(collection, settings) as address:
        log.info("ready at %s; stop it with Ctrl-C", address)
        threading.Event().wait()

"""A page on this machine that searches an index for the photo that a visitor drops on it.

dolg demo --saved_model=MODEL --index=INDEX
"""

import contextlib
import ctypes
import dataclasses
import logging
import os
import pathlib
import socket
import tempfile
import threading
from collections.abc import Iterator

from dolg_tf.stage import installed
from dolg_tf.stage.config import InputError, at_least, option

log = logging.getLogger(__name__)

_LOOKED_FOR = 20  # first photos of the index; one of them should be on disk
_MMAP_THRESHOLD, _ARENA_MAX = -3, -8  # of mallopt(3)
_FILES = 50  # files of the largest size that fit into one upload


@dataclasses.dataclass(frozen=True, kw_only=True)
class DemoConfig:
    """What is searched, and what visitors may ask for."""

    saved_model: str = option("SavedModel that described the photos of the index")
    index: str = option("index (a directory)")
    image_root: str = option(
        "folder with the photos of the index; empty: where they were when they were described", ""
    )
    port: int = option("port of the page on 127.0.0.1", 7860)
    max_bytes: int = option("largest file that is accepted", 20 * 2**20, unit="bytes")
    max_pixels: int = option(
        "largest photo that is accepted, by its header", 50_000_000, unit="pixels"
    )
    max_side: int = option(
        "visitors' photos, or what their box cuts out, are shrunk to this longest side before they "
        "are described, 2048 at most; 0: as the photos of the index were",
        0,
        unit="pixels",
    )
    max_seconds: float = option("longest time that an answer may take", 60.0, unit="s")
    max_added: int = option("photos that visitors may add for themselves, each", 200, unit="photos")

    def __post_init__(self):
        at_least(self, port=1, max_bytes=1, max_pixels=1, max_side=0, max_seconds=0.1, max_added=0)
        if self.port > 65535:
            raise InputError(f"--port={self.port} must be at most 65535")


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


def _import_gradio(uploads: str) -> None:
    """Imports Gradio without its telemetry, whatever the environment asks for."""
    for name in [name for name in os.environ if name.startswith("GRADIO_")]:
        del os.environ[name]
    os.environ["GRADIO_ANALYTICS_ENABLED"] = "False"
    os.environ["HF_HUB_DISABLE_TELEMETRY"] = "1"
    os.environ["GRADIO_TEMP_DIR"] = uploads
    logging.getLogger("httpx").setLevel(logging.WARNING)  # logs requests to the page itself
    installed.need("demo", "the demo", "gradio")


@contextlib.contextmanager
def serving(settings: DemoConfig) -> Iterator[str]:
    """Serves the page while the block runs and yields its address; then uploads are deleted.

    Raises:
      InputError: when the index belongs to another model, the port is taken, or Gradio is missing.
    """
    from dolg_tf.apps.demo.search import Engine

    engine = Engine(settings.saved_model, settings.index, settings.image_root, settings.max_side)
    with contextlib.ExitStack() as stack:
        folder = stack.enter_context(tempfile.TemporaryDirectory(prefix="dolg-demo-"))
        listening = stack.enter_context(_listen(settings.port))
        _import_gradio(folder)
        from dolg_tf.apps.demo import page as demo_page
        from dolg_tf.apps.demo import server
        from dolg_tf.apps.demo.calls import Calls
        from dolg_tf.apps.demo.uploads import Uploads

        if not engine.has_photos(engine.index.ids[:_LOOKED_FOR]):
            log.warning(
                "%s holds none of the first photos of the index: it can be searched, but its "
                "photos are not shown; say where they are with --image_root",
                engine.image_root,
            )
        log.info("%s: %d photos; loading the model ...", settings.index, len(engine.index))
        engine.load()
        limits = settings.max_bytes, settings.max_pixels, settings.max_added
        page = demo_page.Page(engine, *limits)
        blocks = page.build()
        largest = _FILES * settings.max_bytes
        uploads = Uploads(pathlib.Path(folder), settings.max_bytes, largest)
        stack.callback(uploads.close)
        calls = Calls(demo_page.events(blocks), uploads, settings.max_seconds)
        app = server.application(calls, uploads, page.app(blocks), settings.port)
        stack.enter_context(server.serve(app, calls, listening))
        yield f"http://127.0.0.1:{settings.port}"


def demo(settings: DemoConfig) -> None:
    """Serves a page that searches an index for photos, until it is interrupted.

    Visitors drop a photo, draw a box, and see the nearest photos of the index, with scores and what
    the network looked at. It answers this machine only; from another one, `ssh -L` leads to it.

    Raises:
      InputError: as `serving`.
    """
    _steady_memory()
    with serving(settings) as address:
        log.info("ready at %s; stop it with Ctrl-C", address)
        threading.Event().wait()

"""What the page asks its server for: fragments of HTML, pictures, and how far the describing is."""

import asyncio
import concurrent.futures
import functools
import math
import pathlib
import re
from collections.abc import Callable

from starlette.exceptions import HTTPException
from starlette.requests import Request
from starlette.responses import FileResponse, HTMLResponse, JSONResponse, Response
from starlette.routing import Route

from dolg_tf.apps.demo import bodies, html
from dolg_tf.apps.demo.search import (
    LARGE_SIDE,
    OWN_SCALES,
    THUMBNAIL_SIDE,
    Box,
    Engine,
    Query,
)
from dolg_tf.apps.demo.sent import Sent
from dolg_tf.apps.demo.turns import Turns
from dolg_tf.data import photo_files
from dolg_tf.stage.config import InputError

_HERE = pathlib.Path(__file__).parent
_ASSETS = {
    "page.css": "text/css",
    "page.js": "text/javascript",
    "tiles.js": "text/javascript",
    "why.js": "text/javascript",
    "icon.svg": "image/svg+xml",
}
_VISITOR = re.compile(r"[\w-]{1,64}", re.ASCII)
_RECEIVING = 256 * 2**20  # bytes of photos that are received, or wait to be read
_FORGOTTEN = "That photo was forgotten, as it was not searched for an hour; choose it again."
_MOST = 96  # tiles of an answer
_IN_PLACE = 500  # photos of a place that are shown
_NAME = 200  # letters of a file's name that are kept
# What browsers show as it is; others are shown as a JPEG.
_SHOWN = {"JPEG", "PNG", "GIF", "WEBP", "AVIF", "BMP"}
_KEEP = {"cache-control": "private, max-age=3600"}
_FRESH = {"cache-control": "no-cache"}


class Page:
    """The page of an engine.

    Args:
      engine: answers the searches.
      turns: says when.
      max_bytes: of a photo that is received.
    """

    def __init__(self, engine: Engine, turns: Turns, max_bytes: int):
        self._engine, self._turns, self._max_bytes = engine, turns, max_bytes
        self._sent, self._receiving = Sent(), 0
        # Thumbnails need not wait for answers, nor what a click asks for for dozens of thumbnails.
        self._thumbnails = concurrent.futures.ThreadPoolExecutor(2, thread_name_prefix="thumbnail")
        self._parts = concurrent.futures.ThreadPoolExecutor(1, thread_name_prefix="part")

    @property
    def routes(self) -> list[Route]:
        """What is answered."""
        assets = [
            Route(f"/{name}", functools.partial(_asset, name, kind))
            for name, kind in _ASSETS.items()
        ]
        return [
            Route("/", self.whole),
            *assets,
            Route("/favicon.ico", functools.partial(_asset, "icon.svg", _ASSETS["icon.svg"])),
            Route("/status", self.status),
            Route("/places", self.places),
            Route("/place", self.place),
            Route("/sent", self.receive, methods=["POST"]),
            Route("/stage", self.stage),
            Route("/answer", self.answer),
            Route("/attention", self.attention),
            Route("/why", self.why),
            Route("/thumbnail", functools.partial(self.picture, THUMBNAIL_SIDE)),
            Route("/large", functools.partial(self.picture, LARGE_SIDE)),
            Route("/file", self.file),
        ]

    def tidy(self) -> None:
        """Forgets what is old."""
        self._sent.tidy()

    def close(self) -> None:
        """Begins no further picture."""
        for threads in (self._thumbnails, self._parts):
            threads.shutdown(wait=False, cancel_futures=True)

    # --- the page itself -----------------------------------------------------------------

    async def whole(self, _: Request) -> HTMLResponse:
        """The page."""
        return HTMLResponse(await self._quickly(html.page, self._engine))

    async def status(self, _: Request) -> JSONResponse:
        """How far the describing is, for a page that is open."""
        return JSONResponse(await self._quickly(self._status))

    def _status(self) -> dict:
        now, progress = self._engine.now(), self._engine.collection.progress()
        return {
            "version": now.version,
            "html": html.status(progress),
            "working": bool(progress.doing) or progress.done < progress.total,
        }

    async def places(self, request: Request) -> HTMLResponse:
        """The places that the photos show, largest first, up to a number that the page names."""
        most = _whole_number(request, "most", html.FIRST_PLACES, 10**6)
        return HTMLResponse(await self._quickly(html.places, self._engine, most))

    async def place(self, request: Request) -> HTMLResponse:
        """All photos of a place, which any of them names."""
        id_ = request.query_params.get("photo", "")
        return HTMLResponse(await self._quickly(html.place, self._engine, id_, _IN_PLACE))

    async def _quickly(self, work: Callable, *values):
        return await asyncio.get_running_loop().run_in_executor(self._parts, work, *values)

    # --- photos that are searched for ----------------------------------------------------

    async def receive(self, request: Request) -> JSONResponse:
        """Keeps a visitor's photo; answers with the word for it."""
        stated = request.headers.get("content-length", "")
        size = int(stated) if stated.isdecimal() and len(stated) < 19 else self._max_bytes
        name = request.query_params.get("name", "").replace("\\", "/").rpartition("/")[2]
        name = name[:_NAME] or "The photo"
        if size > self._max_bytes:
            limit = f"{size / 2**20:.1f} MiB; the limit is {self._max_bytes / 2**20:.4g} MiB"
            raise HTTPException(413, f"{name} has {limit}.")
        if self._receiving and self._receiving + size > _RECEIVING:
            raise HTTPException(503, "This page is busy: too many photos at once; try again.")
        self._receiving += size
        try:
            data = await bodies.read(request, self._max_bytes)

            def read() -> tuple[Query, str]:
                query = self._engine.read(name, data)
                return query, html.stage(query, self._engine.picture(query))

            query, shown = await self._answered(request, read)
        except InputError as error:
            return JSONResponse({"error": str(error)})
        finally:
            self._receiving -= size
        return JSONResponse({"sent": self._sent.keep(query), "html": shown})

    async def stage(self, request: Request) -> HTMLResponse:
        """The photo that is searched for, to draw a box on."""

        def show() -> str:
            query = self._query(request)
            return html.stage(query, self._engine.picture(query))

        return await self._fragment(request, show)

    async def answer(self, request: Request) -> HTMLResponse:
        """The nearest photos."""
        box, k = _box(request), _whole_number(request, "k", 24, _MOST)
        scales = request.query_params.get("scales", OWN_SCALES)
        reranking = request.query_params.get("rerank", "none")

        def search() -> str:
            query = self._query(request)
            found = self._engine.search(query, box, scales, reranking, k)
            return html.answer(found, self._engine, scales, reranking)

        return await self._fragment(request, search)

    async def attention(self, request: Request) -> HTMLResponse:
        """Where the network looked."""
        box = _box(request)

        def show() -> str:
            return html.attention(self._engine.attention(self._query(request), box))

        return await self._fragment(request, show)

    async def why(self, request: Request) -> HTMLResponse:
        """Why a photo was found."""
        box, id_ = _box(request), request.query_params.get("with", "")

        def show() -> str:
            return html.why(self._engine.second_look.why(self._query(request), box, id_))

        return await self._fragment(request, show)

    def _query(self, request: Request) -> Query:
        word, id_ = (request.query_params.get(key, "") for key in ("sent", "photo"))
        query = self._sent.find(word) if word else None
        if query is None and id_:
            return self._engine.stored(id_)
        if query is None:
            raise InputError(_FORGOTTEN)
        return query

    async def _fragment(self, request: Request, work: Callable[[], str]) -> HTMLResponse:
        """Answers with HTML, or with what is wrong: browsers count 4xx as errors of the page."""
        try:
            return HTMLResponse(await self._answered(request, work))
        except InputError as error:
            return HTMLResponse(html.wrong(str(error)))

    async def _answered(self, request: Request, work: Callable):
        visitor = request.headers.get("x-visitor", "")
        if not _VISITOR.fullmatch(visitor):
            raise HTTPException(400, "A request says who asks: x-visitor, up to 64 letters.")
        return await self._turns.answer(request, visitor, work)

    # --- pictures ------------------------------------------------------------------------

    async def picture(self, side: int, request: Request) -> Response:
        """A small JPEG of a photo of the collection."""
        id_ = request.query_params.get("photo", "")
        loop = asyncio.get_running_loop()
        found = await loop.run_in_executor(self._thumbnails, self._engine.thumbnail, id_, side)
        if found is None:  # browsers count 404 as an error of the page
            return FileResponse(_HERE / "gone.svg", media_type="image/svg+xml", headers=_FRESH)
        return Response(found, media_type="image/jpeg", headers=_KEEP)

    async def file(self, request: Request) -> Response:
        """A photo of the collection as it is, or as a JPEG where browsers cannot show it."""
        id_ = request.query_params.get("photo", "")
        file, kind = await self._quickly(self._kind, id_)
        if file is None or kind not in _SHOWN:
            return await self.picture(LARGE_SIDE, request)
        return FileResponse(file, media_type=f"image/{kind.lower()}")

    def _kind(self, id_: str) -> tuple[pathlib.Path | None, str | None]:
        try:
            file = self._engine.file(id_)
            if file is None:
                return None, None
            with file.open("rb") as opened:
                return file, photo_files.sniff(opened.read(64))
        except OSError:
            return None, None


async def _asset(name: str, kind: str, _: Request) -> FileResponse:
    return FileResponse(_HERE / name, media_type=kind, headers=_FRESH)


def _box(request: Request) -> Box | None:
    """Returns the box of a request, `left,top,right,bottom` in pixels; None: the whole photo."""
    text = request.query_params.get("box", "")
    if not text:
        return None
    try:
        box = tuple(map(float, text.split(",")))
    except ValueError:
        box = ()
    if len(box) != 4 or not all(map(math.isfinite, box)) or max(map(abs, box)) > 1e9:
        raise HTTPException(400, "box must be four numbers, such as 10,20,200,150.")
    return box


def _whole_number(request: Request, name: str, default: int, most: int) -> int:
    text = request.query_params.get(name, str(default))
    if not (text.isascii() and text.isdecimal() and len(text) < 9 and 1 <= int(text) <= most):
        raise HTTPException(400, f"{name} must be a number from 1 to {most}.")
    return int(text)

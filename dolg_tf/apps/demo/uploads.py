"""Files that visitors upload: each is read once, and nothing stays.

They are parsed and written in threads of their own, so that no upload keeps the others waiting.
"""

import asyncio
import concurrent.futures
import contextlib
import dataclasses
import hashlib
import json
import pathlib
import secrets
import threading
import time
from collections.abc import AsyncIterator, Callable, Iterator

from python_multipart.exceptions import FormParserError
from python_multipart.multipart import MultipartParser, parse_options_header
from starlette.exceptions import HTTPException
from starlette.requests import Request
from starlette.responses import JSONResponse, StreamingResponse

from dolg_tf.apps.demo import bodies

BUSY = "This page is busy: too many uploads at once; try again in a moment."
NOT_THERE = "The request names a file that was not uploaded, or was read; choose it again."
_AT_ONCE = 32  # uploads that are received at the same time
_FILES = 1000  # in one upload, as many as Gradio's page sends
_AGE = 300  # seconds that a file waits for the event that names it
_OVERHEAD = 2**20  # bytes of an upload besides those of its files
_BOUNDARY = 70  # bytes, by RFC 2046
_POLL = 0.2  # seconds between looks at an upload's progress
_LOOKS = 15  # for an upload to begin


@dataclasses.dataclass(frozen=True)
class Upload:
    """A file that was uploaded.

    Attributes:
      path: where it is; the visitor names it by this.
      name: the visitor's own for it, without folders.
      digest: a hash of its contents.
      size: in bytes.
      born: `time.monotonic()` when it was complete.
    """

    path: pathlib.Path
    name: str
    digest: str
    size: int
    born: float


class Uploads:
    """The uploaded files.

    Args:
      folder: for them, and for nothing else.
      max_bytes: largest file.
      max_upload: largest sum of the files of one upload; twice as much is kept at most.
    """

    def __init__(self, folder: pathlib.Path, max_bytes: int, max_upload: int):
        self._folder, self._max_bytes, self._max_upload = folder, max_bytes, max_upload
        self._kept: dict[str, Upload] = {}
        self._coming = self._claimed = self._received = 0  # bytes, bytes, uploads
        self._progress: dict[str, _Parts] = {}
        self._threads = concurrent.futures.ThreadPoolExecutor(4, thread_name_prefix="upload")

    # --- what the page asks for ----------------------------------------------------------

    async def receive(self, request: Request) -> JSONResponse:
        """Keeps the files of a request; answers with their paths."""
        length, boundary = self._length(request), _boundary(request)
        id_ = request.query_params.get("upload_id", "")[:64]
        with self._place() as take_room:
            parts = _Parts(boundary, self._folder, self._max_bytes)
            self._progress[id_] = parts
            run = asyncio.get_running_loop().run_in_executor
            try:
                async for chunk in bodies.chunks(request, length):
                    take_room(len(chunk))
                    await run(self._threads, parts.write, chunk)
                await run(self._threads, parts.end)
            except BaseException as error:
                parts.discard()
                raise _refusal(error) from error
            finally:
                parts.done = True
                self._progress.pop(id_, None)
        self._kept |= {str(upload.path): upload for upload in parts.uploads}
        return JSONResponse([str(upload.path) for upload in parts.uploads])

    async def progress(self, request: Request) -> StreamingResponse:
        """Tells how much of an upload has arrived, until it is complete."""
        id_ = request.query_params.get("upload_id", "")[:64]
        for _ in range(_LOOKS):
            if id_ in self._progress:
                return StreamingResponse(_told(self._progress[id_]), media_type="text/event-stream")
            await asyncio.sleep(_POLL)
        raise HTTPException(404, "There is no such upload.")

    # --- what becomes of the files -------------------------------------------------------

    def has(self, path: object) -> bool:
        """Tells whether a file of that path waits."""
        return isinstance(path, str) and path in self._kept

    def claim(self, path: object) -> Upload:
        """Returns the file of that path; whoever claimed it discards it.

        Raises:
          HTTPException: when no such file waits.
        """
        if not self.has(path):
            raise HTTPException(403, NOT_THERE)
        upload = self._kept.pop(path)
        self._claimed += upload.size
        return upload

    def discard(self, upload: Upload) -> None:
        """Deletes a file that was claimed."""
        self._claimed -= upload.size
        with contextlib.suppress(OSError):
            upload.path.unlink()

    def tidy(self) -> None:
        """Deletes files that nobody has claimed in time."""
        for upload in list(self._kept.values()):
            if time.monotonic() - upload.born > _AGE:
                self.discard(self.claim(str(upload.path)))

    def close(self) -> None:
        """Waits for the threads."""
        self._threads.shutdown(wait=True, cancel_futures=True)

    # --- limits --------------------------------------------------------------------------

    def _length(self, request: Request) -> int:
        stated = request.headers.get("content-length", "")
        # In chunks it could be longer than it states.
        if not stated.isdecimal() or "transfer-encoding" in request.headers:
            raise HTTPException(411, "An upload must state its length.")
        if len(stated) > 18 or int(stated) > self._max_upload + _OVERHEAD:
            most = f"{self._max_upload / 2**20:.4g}"
            raise HTTPException(413, f"An upload may have at most {most} MiB.")
        return int(stated)

    @contextlib.contextmanager
    def _place(self) -> Iterator[Callable[[int], None]]:
        """Counts an upload while the block runs; yields a function that takes room for bytes."""
        if self._received >= _AT_ONCE:
            raise HTTPException(503, BUSY)
        self._received, taken = self._received + 1, 0

        def take_room(size: int) -> None:
            nonlocal taken
            self._make_way(size)
            taken, self._coming = taken + size, self._coming + size

        try:
            yield take_room
        finally:
            self._received, self._coming = self._received - 1, self._coming - taken

    def _make_way(self, size: int) -> None:
        """Makes room for bytes: the oldest of the files that nobody claimed are deleted."""
        waiting = list(self._kept.values())
        free = 2 * (self._max_upload + _OVERHEAD) - self._coming - self._claimed
        free -= sum(upload.size for upload in waiting)
        for upload in waiting:
            if free >= size:
                break
            self.discard(self.claim(str(upload.path)))
            free += upload.size
        if free < size:
            raise HTTPException(503, BUSY)


def _boundary(request: Request) -> bytes:
    kind, options = parse_options_header(request.headers.get("content-type", ""))
    boundary = options.get(b"boundary", b"")
    if kind != b"multipart/form-data" or not 0 < len(boundary) <= _BOUNDARY:
        raise HTTPException(400, "An upload is multipart/form-data with a boundary.")
    return boundary


def _refusal(error: BaseException) -> BaseException:
    """Returns what to answer when an upload failed."""
    if isinstance(error, FormParserError):
        return HTTPException(400, "The upload cannot be read: it is not multipart/form-data.")
    if isinstance(error, OSError) and not isinstance(error, TimeoutError):
        return HTTPException(503, f"The upload cannot be kept ({error.strerror}); try again later.")
    return error


async def _told(parts: "_Parts") -> AsyncIterator[str]:
    told = 0
    while not parts.done:
        if parts.written > told:
            about = {"msg": "update", "orig_name": parts.name, "chunk_size": parts.written - told}
            told = parts.written
            yield f"data: {json.dumps(about)}\n\n"
        await asyncio.sleep(_POLL)
    yield f"data: {json.dumps({'msg': 'done'})}\n\n"


class _Parts:
    """The parts of a body, written to files as they come.

    Attributes:
      uploads: the complete files.
      name, written: of the file under way, for those who watch; bytes.
      done: whether nothing more comes.
    """

    def __init__(self, boundary: bytes, folder: pathlib.Path, max_bytes: int):
        self.uploads: list[Upload] = []
        self.name, self.written, self.done = "", 0, False
        self._folder, self._max_bytes = folder, max_bytes
        self._file = self._digest = None
        self._field, self._header, self._about = b"", b"", b""
        self._count = 0
        names = ("part_begin", "part_data", "part_end", "header_field", "header_value")
        names += ("header_end", "headers_finished", "end")
        callbacks = {f"on_{name}": getattr(self, f"_{name}") for name in names}
        self._ended, self._lock = False, threading.Lock()
        self._parser = MultipartParser(boundary, callbacks)

    def write(self, chunk: bytes) -> None:
        """Takes the next piece of the body."""
        with self._lock:
            if self.done:  # the request broke off before a thread came to this
                return
            self._parser.write(chunk)

    def end(self) -> None:
        """Makes sure that the body was whole."""
        self._parser.finalize()
        if not self._ended:
            raise FormParserError("the last boundary is missing")

    def discard(self) -> None:
        """Deletes what was written."""
        with self._lock:
            self.done = True
            if self._file is not None:
                self._file.close()
                pathlib.Path(self._file.name).unlink(missing_ok=True)
            for upload in self.uploads:
                upload.path.unlink(missing_ok=True)

    def _part_begin(self) -> None:
        self._count += 1
        if self._count > _FILES:
            raise HTTPException(413, f"An upload may have at most {_FILES} files.")
        self._field, self._header, self._about = b"", b"", b""

    def _header_field(self, data: bytes, start: int, end: int) -> None:
        self._field += data[start:end]

    def _header_value(self, data: bytes, start: int, end: int) -> None:
        self._header += data[start:end]

    def _header_end(self) -> None:
        if self._field.lower() == b"content-disposition":
            self._about = self._header
        self._field, self._header = b"", b""

    def _headers_finished(self) -> None:
        name = parse_options_header(self._about)[1].get(b"filename")
        if name is None:
            raise HTTPException(400, "An upload holds files only.")
        name = name.decode("utf-8", "replace").replace("\\", "/").rpartition("/")[2][:200]
        self.name = name or "photo"
        path = self._folder / secrets.token_hex(16)
        self._file, self._digest = path.open("xb"), hashlib.sha256()
        self._size = 0

    def _part_data(self, data: bytes, start: int, end: int) -> None:
        self._size += end - start
        if self._size > self._max_bytes:
            most = f"the maximum allowed size of {self._max_bytes / 2**20:.4g} MiB"
            raise HTTPException(413, f"{self.name!r} exceeds {most}.")
        piece = data[start:end]
        self._file.write(piece)
        self._digest.update(piece)
        self.written += end - start

    def _part_end(self) -> None:
        self._file.close()
        path, digest = pathlib.Path(self._file.name), self._digest.hexdigest()
        self.uploads.append(Upload(path, self.name, digest, self._size, time.monotonic()))
        self._file = None

    def _end(self) -> None:
        self._ended = True

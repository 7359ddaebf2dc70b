"""Good, damaged, huge and malformed requests to an export and to the page, for `endurance.py`."""

import contextlib
import dataclasses
import http.client
import itertools
import json
import os
import pathlib
import signal
import socket
import subprocess
import sys
import time
import zlib
from collections.abc import Iterator

import numpy as np
from endurance_child import Child, Outcome, begin_child
from endurance_mutations import apply, draw_recipe
from endurance_photos import OK, PHOTO_KINDS, SENT_PHOTOS, TOO_LARGE, UNDECODABLE, draw_photo
from endurance_world import ROOT, World

PATIENCE = 30.0  # seconds for one answer, on a busy machine
_START = 300.0  # seconds until the page is ready, and until a model is loaded


@dataclasses.dataclass(frozen=True)
class Request:
    """A recipe: who is asked, what, and the seed that it is drawn by."""

    target: str  # one of TARGETS
    kind: str
    seed: int


def _mutated(world: World, scratch: pathlib.Path, rng: np.random.Generator) -> bytes:
    name = list(PHOTO_KINDS)[rng.integers(len(PHOTO_KINDS))]
    source, target = world[name], scratch / name
    recipe = draw_recipe(name, source, rng)
    apply(dataclasses.replace(recipe, instead=""), source, target)
    return target.read_bytes()


# --- an export --------------------------------------------------------------------------------


def _malformed(rng: np.random.Generator) -> tuple[str, dict]:
    """Returns a call that must be refused, or answered with finite numbers."""
    photo = draw_photo(0, 0)
    one = np.ones(1, np.float32)
    calls = [
        ("serving_default", {"image_bytes": np.array([], object)}),
        ("serving_default", {"image_bytes": np.array(b"scalar", object)}),
        ("serving_default", {"image_bytes": np.array([[b"x"]], object)}),
        ("serving_default", {"image_bytes": np.zeros(2, np.float32)}),
        ("serving_default", {}),
        ("serving_default", {"other": one}),
        ("images", {"images": photo[None]}),
        ("images", {"images": photo, "scales": one}),
        ("images", {"images": photo[None].astype(np.float32), "scales": one}),
        ("images", {"images": photo[None, ..., :1], "scales": one}),
        ("images", {"images": photo[None][:0], "scales": one}),
        ("images", {"images": photo[None, :0], "scales": one}),
        ("images", {"images": photo[None], "scales": one[:0]}),
        ("images", {"images": photo[None], "scales": one * 0}),
        ("images", {"images": photo[None], "scales": -one}),
        ("images", {"images": photo[None], "scales": one * np.nan}),
        ("images", {"images": photo[None], "scales": one * np.inf}),
        ("images", {"images": photo[None], "scales": one * 1e9}),
        ("maps", {"image": photo[:0]}),
        ("maps", {"image": photo[None]}),
        ("local_features", {"image": photo[..., :2]}),
        ("unknown", {"image": photo}),
    ]
    return calls[rng.integers(len(calls))]


def _ask_model(session, world: World, scratch: pathlib.Path, request: Request) -> Outcome:
    """Sends a request and judges the answer."""
    rng = np.random.default_rng(request.seed)
    if request.kind == "malformed call":
        signature, inputs = _malformed(rng)
        try:
            found = session.run(signature, inputs)
        except (RuntimeError, ValueError, KeyError, TypeError) as error:
            return Outcome("clean", f"{signature} {list(inputs)}: {error!s:.200}")
        finite = all(np.isfinite(x).all() for x in found.values() if x.dtype.kind == "f")
        return Outcome(
            "clean" if finite else "wrong", f"{signature} {inputs!s:.200}: {found!s:.200}"
        )
    if request.kind == "several photos":
        kinds = [list(SENT_PHOTOS)[i] for i in rng.integers(0, 3, 3)]
        photos = [SENT_PHOTOS[kind][0](rng) for kind in kinds]
        together = session.run("serving_default", {"image_bytes": np.array(photos, object)})
        for row, photo in enumerate(photos):
            alone = session.run("serving_default", {"image_bytes": np.array([photo], object)})
            for name, value in alone.items():
                if np.abs(value[0] - together[name][row]).max() > 1e-6:
                    return Outcome("wrong", f"{kinds[row]}: {name} differs in a batch")
        return Outcome("same")
    if request.kind == "mutated photo":
        photo, wanted = _mutated(world, scratch, rng), (OK, UNDECODABLE, TOO_LARGE)
    else:
        draw, wanted = SENT_PHOTOS[request.kind]
        photo = draw(rng)
    found = session.run("serving_default", {"image_bytes": np.array([photo], object)})
    row, status = found["descriptors"][0], int(found["status"][0])
    norm = float(np.linalg.norm(row))
    if status not in wanted or abs(norm - (status == OK)) > 1e-4:
        return Outcome("wrong", f"status {status}, norm {norm}")
    return Outcome("same" if status == OK else "clean")


def _serve(pipe, world: World, scratch: pathlib.Path) -> None:
    """Answers requests with an export until the pipe is closed; a process' main function."""
    begin_child(scratch / "model.txt")
    from dolg_tf.runtime.session import CppSession

    with CppSession(world["saved_model"]) as session:
        pipe.send(None)
        with contextlib.suppress(EOFError):
            while True:
                pipe.send(_ask_model(session, world, scratch, pipe.recv()))


class Model(Child):
    """An export in a process."""

    kinds = (*SENT_PHOTOS, "mutated photo", "several photos", "malformed call")

    def __init__(self, world: World, scratch: pathlib.Path):
        super().__init__(_serve, world, scratch)

    def start(self) -> None:
        """Loads the export in the process."""
        super().start()
        if not self._pipe.poll(_START) or self._pipe.recv() is not None:
            raise RuntimeError("the export does not load")

    def ask(self, request: Request) -> Outcome:
        """Returns what became of a request."""
        return self._ask(request, PATIENCE)


# --- the page ---------------------------------------------------------------------------------

_ROUTES = (
    *("/parts.html.j2", "/page.css/../../../etc/passwd", "/runs", "/gradio_api/info"),
    *("/file/etc/passwd", "/..%2f..%2fetc/passwd", "/\0", "/" + "a" * 9000),
)
_CALLS = (  # what the page never asks for
    *("/answer", "/answer?photo=0&box=1,2,3", "/answer?photo=0&box=1,2,3,inf", "/answer?k=1e9"),
    *("/answer?photo=0&k=-1", "/attention?box=x", "/places?most=0", "/places?most=" + "9" * 400),
    *("/stage?photo=%ff&box=,,,", "/answer?photo=" + "%00" * 2000 + "&k=x"),
)


class Page:
    """`dolg demo` in a process of its own, asked as a browser asks."""

    kinds = (
        *("good photo", "cut photo", "no photo", "huge photo", "bomb of scans", "mutated photo"),
        *("malformed call", "unknown route", "foreign name", "broken upload"),
    )

    def __init__(self, world: World, scratch: pathlib.Path):
        self._world, self._scratch, self._process = world, scratch, None
        self._visitors = itertools.count()
        self._log, self._read = scratch / "page.txt", 0

    def start(self) -> None:
        """Starts the page and waits until it is ready."""
        with socket.socket() as free:
            free.bind(("127.0.0.1", 0))
            self._port = free.getsockname()[1]
        words = [
            sys.executable,
            "-m",
            "dolg_tf",
            "demo",
            f"--saved_model={self._world['saved_model']}",
        ]
        words += [f"--index={self._world['page_index']}", f"--port={self._port}"]
        environment = {**os.environ, "PYTHONPATH": str(ROOT), "TMPDIR": str(self._scratch)}
        self._read = 0
        with self._log.open("w") as file:
            self._process = subprocess.Popen(
                words, stdout=file, stderr=file, env=environment, start_new_session=True
            )
        end = time.monotonic() + _START
        while "ready at" not in self._log.read_text(errors="replace"):
            if self._process.poll() is not None or time.monotonic() > end:
                raise RuntimeError(f"the page does not start: {self._log.read_text()[-1500:]}")
            time.sleep(0.2)

    def _send(self, method: str, path: str, body=None, headers=None) -> tuple[int, bytes]:
        link = http.client.HTTPConnection("127.0.0.1", self._port, timeout=PATIENCE)
        with contextlib.closing(link):
            link.putrequest(method, path, skip_host="host" in (headers or {}))
            for name, value in (headers or {}).items():
                link.putheader(name, value)
            if body is not None:
                link.putheader("content-length", str(len(body)))
            link.endheaders(body)
            answer = link.getresponse()
            return answer.status, answer.read()

    def _show(self, data: bytes) -> str:
        """Sends a photo and returns what the page says to it."""
        visitor = {"x-visitor": f"visitor{next(self._visitors)}"}
        status, said = self._send("POST", "/sent?name=photo.png", data, visitor)
        if status == 200 and b'"sent"' in said:
            word = json.loads(said)["sent"]
            status, said = self._send("GET", f"/answer?sent={word}", None, visitor)
        return f"status {status}: {said.decode(errors='replace')}"

    def ask(self, request: Request) -> Outcome:
        """Returns what became of a request."""
        if self._process is None:
            self.start()
        try:
            outcome = self._ask(request, np.random.default_rng(request.seed))
        except TimeoutError:
            outcome = Outcome("hang", f"no answer in {PATIENCE:.0f} s")
        except (OSError, http.client.HTTPException) as error:
            outcome = Outcome("clean", f"the connection was closed: {error}")
        said = self._log.read_text(errors="replace")
        new, self._read = said[self._read :], len(said)
        if self._process.poll() is not None:
            outcome = Outcome("crash", f"exit code {self._process.returncode}: {new[-1000:]}")
        elif "Traceback" in new:
            outcome = Outcome("traceback", new[-2000:])
        if outcome.kind in ("crash", "hang"):
            self.close()
        return outcome

    def _ask(self, request: Request, rng: np.random.Generator) -> Outcome:
        if request.kind in SENT_PHOTOS or request.kind == "mutated photo":
            draw = SENT_PHOTOS.get(request.kind, (None,))[0]
            photo = draw(rng) if draw else _mutated(self._world, self._scratch, rng)
            said = self._show(photo)
            found = "data-photo=" in said
            alert = '"error"' in said or 'role="alert"' in said or "status 4" in said
            if "status 5" in said:
                return Outcome("traceback", said[-1500:])
            if request.kind == "good photo":
                return Outcome("same" if found else "wrong", said[-500:])
            free = request.kind in ("cut photo", "mutated photo")  # may still be a photo
            return Outcome("clean" if alert or (free and found) else "wrong", said[-500:])
        status, said = getattr(self, f"_{request.kind.replace(' ', '_')}")(rng)
        words = f"status {status}: {said[:200]!r}"
        if status >= 500:
            return Outcome("traceback", words)
        return Outcome("clean" if status >= 400 else "wrong", words)

    def _malformed_call(self, rng) -> tuple[int, bytes]:
        visitors = ({}, {"x-visitor": "x"}, {"x-visitor": "../x"}, {"x-visitor": "x" * 99})
        path, visitor = _CALLS[rng.integers(len(_CALLS))], visitors[rng.integers(len(visitors))]
        status, said = self._send("GET", path, None, visitor)
        refused = status == 200 and b'role="alert"' in said  # a photo that is not there
        return (422, said) if refused else (status, said)

    def _unknown_route(self, rng) -> tuple[int, bytes]:
        method = ("GET", "POST", "PUT", "DELETE", "OPTIONS")[rng.integers(5)]
        path = _ROUTES[rng.integers(len(_ROUTES))].replace("\0", "%00")
        return self._send(method, path)

    def _foreign_name(self, rng) -> tuple[int, bytes]:
        host = f"127.0.0.1:{self._port}"
        headers = [
            {"host": "evil.example"},
            {"host": ""},
            {"host": "127.0.0.1.evil.example"},
            {"host": host, "origin": "https://evil.example"},
            {"host": host, "origin": "null"},
        ]
        return self._send("GET", "/", None, headers[rng.integers(len(headers))])

    def _broken_upload(self, rng) -> tuple[int, bytes]:
        """A photo without its end, its visitor or its length; the first is closed in the middle."""
        path, visitor = "/sent?name=x", {"x-visitor": "x"}
        kind = int(rng.integers(4))
        if kind == 0:
            with socket.create_connection(("127.0.0.1", self._port), PATIENCE) as link:
                head = f"POST {path} HTTP/1.1\r\nhost: 127.0.0.1:{self._port}\r\n"
                link.sendall(f"{head}x-visitor: x\r\ncontent-length: 100000\r\n\r\nx".encode())
                time.sleep(0.1)
            time.sleep(0.5)  # until the log says what the page thinks of it
            return 499, b"closed by the visitor"
        if kind == 1:
            return self._send("POST", path, rng.bytes(500), {})
        if kind == 2:
            return self._send("PUT", path, zlib.compress(bytes(500)), visitor)
        return self._send("POST", path, None, {"x-visitor": "x", "content-length": "x"})

    def close(self) -> None:
        """Ends the page."""
        if self._process is not None:
            with contextlib.suppress(ProcessLookupError):
                os.killpg(self._process.pid, signal.SIGKILL)
            self._process.wait()
            self._process = None


TARGETS = {"serving": Model, "page": Page}


def send_requests(
    world: World, scratch: pathlib.Path, seconds: float, seed: int
) -> Iterator[tuple[Request, Outcome]]:
    """Sends mixed requests to an export and to the page for a time."""
    scratch.mkdir(parents=True, exist_ok=True)
    rng = np.random.default_rng(seed)
    targets = {name: cls(world, scratch) for name, cls in TARGETS.items()}
    with contextlib.ExitStack() as stack:
        for target in targets.values():
            stack.callback(target.close)
            target.start()
        end = time.monotonic() + seconds
        while time.monotonic() < end:
            name = list(targets)[rng.integers(len(targets))]
            kinds = targets[name].kinds
            request = Request(name, kinds[rng.integers(len(kinds))], int(rng.integers(1 << 31)))
            yield request, targets[name].ask(request)


def repeat_request(world: World, scratch: pathlib.Path, request: Request) -> Outcome:
    """Sends one request again."""
    scratch.mkdir(parents=True, exist_ok=True)
    with contextlib.closing(TARGETS[request.target](world, scratch)) as target:
        return target.ask(request)

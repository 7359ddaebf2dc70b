"""Commands killed at a random moment and run again: what `endurance.py` does to commands."""

import contextlib
import dataclasses
import logging
import os
import pathlib
import re
import shutil
import signal
import subprocess
import sys
import time
from collections.abc import Iterator

import numpy as np
from endurance_child import Outcome
from endurance_commands import COMMANDS, Command
from endurance_world import ROOT, World

log = logging.getLogger(__name__)

PATIENCE = 600.0  # seconds for a command, on a busy machine
_OUR_CODE = re.compile(r'File "[^"]*dolg_tf/')  # in a traceback
_END = 20.0  # seconds in which a killed command's processes must be gone
_SIGNALS = (signal.SIGKILL,) * 5 + (signal.SIGINT, signal.SIGTERM)


@dataclasses.dataclass(frozen=True)
class Kill:
    """A recipe: which command is killed, by which signal, and when.

    Attributes:
      command: its words.
      number: of the signal.
      seconds: after the start, or after the first change of the outputs' folder.
      after_change: which of both.
    """

    command: str
    number: int
    seconds: float
    after_change: bool


@dataclasses.dataclass(frozen=True)
class Sound:
    """What an undisturbed run leaves, and how long it takes."""

    old: object
    result: object
    listing: list[str]
    change: float  # seconds until the folder of the outputs first changes
    seconds: float


class Arena:
    """Runs and kills commands in one folder.

    Args:
      world: the inputs.
      folder: for the outputs.
    """

    def __init__(self, world: World, folder: pathlib.Path):
        self._world, self._folder, self._work = world, folder, folder / "work"
        self._sound = {}

    def _prepare(self, command: Command) -> None:
        shutil.rmtree(self._folder, ignore_errors=True)
        self._work.mkdir(parents=True)
        if command.before:
            source, target = self._world[command.before], self._work / command.output
            (shutil.copytree if source.is_dir() else shutil.copyfile)(source, target)

    def _arguments(self, name: str, command: Command) -> list[str]:
        words = []
        for flag in command.flags:
            text = flag.replace("{work}", str(self._work))
            while "{" in text:
                item = text.partition("{")[2].partition("}")[0]
                text = text.replace(f"{{{item}}}", str(self._world[item]))
            words.append(text)
        return [*name.partition(" of ")[0].split(), *words]

    @contextlib.contextmanager
    def _running(self, name: str, command: Command, log_name: str) -> Iterator[subprocess.Popen]:
        """Yields a command's process, whose group and session are its own."""
        environment = {**os.environ, "PYTHONPATH": str(ROOT), "TMPDIR": str(self._folder)}
        with (self._folder / log_name).open("w") as file:
            process = subprocess.Popen(
                [sys.executable, "-m", "dolg_tf", *self._arguments(name, command)],
                cwd=self._folder,
                env=environment,
                stdin=subprocess.DEVNULL,
                stdout=file,
                stderr=file,
                start_new_session=True,
            )
        try:
            yield process
        finally:
            with contextlib.suppress(ProcessLookupError):
                os.killpg(process.pid, signal.SIGKILL)
            process.wait()

    def _said(self, log_name: str) -> str:
        return (self._folder / log_name).read_text(errors="replace")

    def _listing(self) -> list[str]:
        found = []
        for parent, folders, names in os.walk(self._work):  # what vanishes meanwhile is left out
            inside = pathlib.Path(parent).relative_to(self._work)
            found += [(inside / name).as_posix() for name in (*folders, *names)]
        return sorted(name for name in found if "/events.out." not in name)

    def sound(self, name: str) -> Sound:
        """Returns what an undisturbed run leaves; it is run once.

        Raises:
          RuntimeError: when it fails.
        """
        if name not in self._sound:
            command = COMMANDS[name]
            self._prepare(command)
            old = command.compare(self._work / command.output) if command.before else None
            before, start, change = self._listing(), time.monotonic(), None
            with self._running(name, command, "sound.txt") as process:
                while process.poll() is None:
                    if change is None and self._listing() != before:
                        change = time.monotonic() - start
                    time.sleep(0.002)
                    if time.monotonic() - start > PATIENCE:
                        raise RuntimeError(f"{name}: no end in {PATIENCE:.0f} s")
            seconds = time.monotonic() - start
            if process.returncode:
                raise RuntimeError(f"{name}: {self._said('sound.txt')[-2000:]}")
            result = command.compare(self._work / command.output)
            change = seconds if change is None else change
            self._sound[name] = Sound(old, result, self._listing(), change, seconds)
            log.info("%s: %.1f s undisturbed, first change at %.1f s", name, seconds, change)
        return self._sound[name]

    def draw(self, name: str, rng: np.random.Generator) -> Kill:
        """Draws a moment: anywhere, or, as often, where files are written."""
        sound, after = self.sound(name), bool(rng.random() < 0.5)
        longest = sound.seconds - sound.change if after else sound.seconds
        number = int(_SIGNALS[rng.integers(len(_SIGNALS))])
        return Kill(name, number, float(rng.uniform(0, longest)), after)

    def kill(self, kill: Kill) -> Outcome:
        """Kills a command, runs it again and compares the result with an undisturbed run's."""
        command, sound = COMMANDS[kill.command], self.sound(kill.command)
        self._prepare(command)
        with self._running(kill.command, command, "killed.txt") as process:
            self._strike(process, kill)
            try:
                process.wait(PATIENCE)
            except subprocess.TimeoutExpired:
                return Outcome(
                    "hang", f"no end after the signal: {self._said('killed.txt')[-500:]}"
                )
            if left := _wait_for_session(process.pid):
                return Outcome("wrong", f"processes that outlive the command: {left}")
        said = self._said("killed.txt")
        # A child whose parent is killed while Python starts it says so in Python's own words.
        if "Traceback" in said and (kill.number != signal.SIGKILL or _OUR_CODE.search(said)):
            return Outcome("traceback", said[-2000:])
        if process.returncode < 0 and -process.returncode != kill.number:
            return Outcome("crash", f"exit code {process.returncode}: {said[-500:]}")
        if command.before and not self._kept(command, sound):
            return Outcome("wrong", f"neither the old output nor the new: {self._listing()}")
        with self._running(kill.command, command, "again.txt") as process:
            try:
                process.wait(PATIENCE)
            except subprocess.TimeoutExpired:
                return Outcome("hang", f"no end of the rerun: {self._said('again.txt')[-500:]}")
        return self._judge(command, sound, process.returncode)

    def _strike(self, process: subprocess.Popen, kill: Kill) -> None:
        if kill.after_change:
            before = self._listing()
            while process.poll() is None and self._listing() == before:
                time.sleep(0.002)
        with contextlib.suppress(subprocess.TimeoutExpired):
            process.wait(kill.seconds)
        with contextlib.suppress(ProcessLookupError):
            # As Ctrl-C in a terminal: to all processes of the command.
            send = os.killpg if kill.number == signal.SIGINT else os.kill
            send(process.pid, kill.number)

    def _kept(self, command: Command, sound: Sound) -> bool:
        try:
            found = command.compare(self._work / command.output)
        except OSError:
            return False
        return found in (sound.old, sound.result)

    def _judge(self, command: Command, sound: Sound, code: int) -> Outcome:
        said = self._said("again.txt")
        if "Traceback" in said:
            return Outcome("traceback", said[-2000:])
        if code < 0:
            return Outcome("crash", f"the rerun's exit code is {code}: {said[-500:]}")
        try:
            result = command.compare(self._work / command.output)
        except (OSError, ValueError) as error:
            return Outcome("wrong", f"{error}; {said[-500:]}")
        if result != sound.result:
            return Outcome("wrong", f"another result, exit code {code}: {said[-800:]}")
        if extra := sorted(set(self._listing()) ^ set(sound.listing)):
            return Outcome("wrong", f"left over or missing: {extra[:10]}")
        if code:  # it was finished before: the command says so
            honest = said.count(": error: ") == 1
            return Outcome("clean" if honest else "wrong", said[-300:])
        return Outcome("same")


def _wait_for_session(session: int) -> list[str]:
    """Returns the processes of a session that do not end."""
    end = time.monotonic() + _END
    while True:
        found = []
        for path in pathlib.Path("/proc").glob("[0-9]*/stat"):
            with contextlib.suppress(OSError):
                fields = path.read_text().rpartition(")")[2].split()
                if int(fields[3]) == session and fields[0] != "Z":
                    found.append((path.parent / "cmdline").read_bytes().replace(b"\0", b" "))
        if not found or time.monotonic() > end:
            return [line.decode(errors="replace")[:100] for line in found]
        time.sleep(0.05)


def kill_commands(
    arena: Arena, shares: dict[str, int], seed: int
) -> Iterator[tuple[Kill, Outcome]]:
    """Kills each command as often as `shares` says, at moments drawn by `seed`."""
    for place, (name, count) in enumerate(shares.items()):
        rng = np.random.default_rng([seed, place])
        for _ in range(count):
            kill = arena.draw(name, rng)
            outcome = arena.kill(kill)
            log.info("%s: %s", kill, outcome.kind)
            yield kill, outcome

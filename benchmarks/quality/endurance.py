"""Kills, mutated files and mixed requests: does anything break?

    python benchmarks/quality/endurance.py --output=endurance.json

Commands are killed at random moments (SIGKILL, some SIGINT and SIGTERM) and run again, files of
every kind are changed at random and read, and an export and the page are asked for good, damaged,
huge and malformed things in turn. Small inputs are drawn and made first. Prints one table and exits
with 1 unless its last four columns are zero:

  clean      one honest line (or a status, or an answer that says so), nothing lost;
  same       the result of an undisturbed run, of the sound file, or the right answer;
  wrong      another result, old output lost, something left behind, an error that names no file;
             for readers, damage taken in silence where checksums promise to notice it;
  traceback  an exception that no command turns into a line;
  crash      a process died;
  hang       no end within a bound.

What is missing from "tried" was read as other valid data (a letter of a CSV, a pixel), in formats
without checksums. With --output each failure is written with its recipe; --repeat=FILE attacks with
those again.
"""

import collections
import contextlib
import dataclasses
import json
import logging
import pathlib
import sys
import tempfile
from collections.abc import Iterator

from endurance_child import Outcome
from endurance_commands import COMMANDS
from endurance_kills import Arena, Kill, kill_commands
from endurance_mutations import Recipe, Worker, mutate, share_out
from endurance_readers import READERS
from endurance_requests import Request, repeat_request, send_requests
from endurance_world import World

from dolg_tf.stage import command, files
from dolg_tf.stage import config as configs

log = logging.getLogger(__name__)

COLUMNS = ("clean", "same", "wrong", "traceback", "crash", "hang")
FAILURES = COLUMNS[2:]


@dataclasses.dataclass(frozen=True, kw_only=True)
class EnduranceConfig:
    """How much of each attack, and where failures are written."""

    kills: int = configs.option("killed commands, at least; 0: none", 100)
    mutations: int = configs.option("mutated files, at least; 0: none", 10_000)
    minutes: float = configs.option("time of mixed requests; 0: none", 10.0, unit="minutes")
    seed: int = configs.option("seed of all attacks", 0)
    output: str = configs.option("JSON of the table and of each failure; empty: none", "")
    repeat: str = configs.option("JSON of an earlier run whose failures are tried again", "")

    def __post_init__(self):
        configs.at_least(self, kills=0, mutations=0, minutes=0, seed=0)


@dataclasses.dataclass(frozen=True)
class Attack:
    """One attack: its row of the table, its recipe and what became of it."""

    row: str
    recipe: Kill | Recipe | Request
    outcome: Outcome


def attacks(config: EnduranceConfig, folder: pathlib.Path) -> Iterator[Attack]:
    """Makes all attacks, in a folder for inputs and outputs; yields each when it is over."""
    world = World(folder / "world")
    if config.mutations:
        shares = share_out(READERS, config.mutations)
        with contextlib.closing(Worker(READERS, world, folder / "files")) as reading:
            for recipe, outcome in mutate(READERS, shares, reading, config.seed):
                yield Attack(f"file: {recipe.reader}", recipe, outcome)
    if config.kills:
        shares = share_out(COMMANDS, config.kills)
        arena = Arena(world, folder / "kills")
        for kill, outcome in kill_commands(arena, shares, config.seed):
            yield Attack(f"kill: {kill.command}", kill, outcome)
    if config.minutes:
        sent = send_requests(world, folder / "requests", 60 * config.minutes, config.seed)
        for request, outcome in sent:
            yield Attack(f"request: {request.target}, {request.kind}", request, outcome)


def repeated(path: str, folder: pathlib.Path) -> Iterator[Attack]:
    """Makes the attacks again that failed in an earlier run."""
    world = World(folder / "world")
    arena = Arena(world, folder / "kills")
    with contextlib.closing(Worker(READERS, world, folder / "files")) as reading:
        for failure in files.read_json(path)["failures"]:
            row, values = failure["row"], failure["recipe"]
            if row.startswith("kill"):
                recipe = Kill(**values)
                outcome = arena.kill(recipe)
            elif row.startswith("file"):
                edits = tuple(map(tuple, values.pop("edits")))
                recipe = Recipe(**values, edits=edits)
                outcome = reading.judge(recipe)
            else:
                recipe = Request(**values)
                outcome = repeat_request(world, folder / "requests", recipe)
            yield Attack(row, recipe, outcome)


def table(rows: dict[str, collections.Counter]) -> list[str]:
    """Returns the lines of a Markdown table, one row for each kind of attack and their sum."""
    lines = [f"| attack | tried | {' | '.join(COLUMNS)} |", f"| --- |{' --- |' * 7}"]
    for name, counts in {**rows, "all": sum(rows.values(), collections.Counter())}.items():
        cells = (counts.total(), *(counts[column] for column in COLUMNS))
        lines.append(f"| {name} | {' | '.join(map(str, cells))} |")
    return lines


def endure(config: EnduranceConfig) -> None:
    """Attacks commands, readers, an export and the page; prints what became of each attack."""
    rows, failures = {}, []
    with tempfile.TemporaryDirectory(prefix="endurance-") as name:
        folder = pathlib.Path(name)
        made = repeated(config.repeat, folder) if config.repeat else attacks(config, folder)
        for attack in made:
            outcome = attack.outcome
            rows.setdefault(attack.row, collections.Counter())[outcome.kind] += 1
            if outcome.kind in FAILURES:
                recipe = dataclasses.asdict(attack.recipe)
                failures.append({"row": attack.row, "recipe": recipe, **vars(outcome)})
                log.warning("%s: %s: %s", attack.row, outcome.kind, json.dumps(recipe)[:200])
    if config.output:
        found = {"table": rows, "failures": failures}
        files.write_json(config.output, {"config": configs.to_dict(config), **found})
    print("\n".join(table(rows)))
    if failures:
        sys.exit(f"{len(failures)} attacks failed")


if __name__ == "__main__":
    command.main(endure, EnduranceConfig)

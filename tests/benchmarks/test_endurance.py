"""Endurance, small: mutated files over the cheap readers, a few kills, some requests."""

import collections
import contextlib
import dataclasses
import json
import sys

import broken_readers
import endurance
import endurance_commands
import endurance_kills
import endurance_mutations
import endurance_world
import numpy as np
import pytest
from endurance import FAILURES, Attack, EnduranceConfig
from endurance_child import Outcome
from endurance_kills import Arena, Kill
from endurance_mutations import Recipe, Worker
from endurance_photos import encode_photo, scan_bomb
from endurance_readers import READERS
from endurance_requests import send_requests
from endurance_world import World

from dolg_tf.cli import COMMANDS
from dolg_tf.stage import command
from dolg_tf.stage.config import InputError


@pytest.fixture(scope="module")
def world(tmp_path_factory):
    return World(tmp_path_factory.mktemp("endurance") / "world")


def test_an_input_is_made_once_whole_and_with_the_help_of_others(tmp_path, monkeypatch):
    made = []

    def outer(world, path):
        path.mkdir()
        (path / "copy").write_text(world["inner"].read_text())
        made.append(path)

    def inner(world, path):
        path.write_text("half")
        if not made and not (world.folder / "failed").exists():
            (world.folder / "failed").touch()
            raise RuntimeError
        path.write_text("whole")

    monkeypatch.setattr(endurance_world, "MAKERS", {"outer": outer, "inner": inner})
    world = World(tmp_path / "world")
    with pytest.raises(RuntimeError):
        world["outer"]
    for _ in range(2):
        assert (world["outer"] / "copy").read_text() == "whole"
    assert len(made) == 1
    assert {path.name for path in world.folder.iterdir()} == {"failed", "inner", "outer"}


# --- mutated files ----------------------------------------------------------------------------


def _changed(tmp_path, recipe, data=b"0123456789"):
    source, target = tmp_path / "source.txt", tmp_path / "target.txt"
    source.write_bytes(data)
    endurance_mutations.apply(recipe, source, target)
    return target


def test_a_recipe_changes_one_file(tmp_path):
    edits = ((2, 3, "ff"), (0, 0, "4142"), (7, 99, ""))
    assert _changed(tmp_path, Recipe("x", "", edits)).read_bytes() == b"AB01\xff56"
    (tmp_path / "folder/inner").mkdir(parents=True)
    (tmp_path / "folder/inner/a").write_bytes(b"a")
    recipe = Recipe("x", "inner/a", ((0, 1, "62"),))
    endurance_mutations.apply(recipe, tmp_path / "folder", tmp_path / "changed")
    assert (tmp_path / "changed/inner/a").read_bytes() == b"b"
    assert (tmp_path / "folder/inner/a").read_bytes() == b"a"


@pytest.mark.parametrize(
    ("instead", "is_there"),
    [("nothing", "exists"), ("folder", "is_dir"), ("loop", "is_symlink"), ("pipe", "is_fifo")],
)
def test_something_else_in_the_place_of_a_file(tmp_path, instead, is_there):
    for _ in range(2):  # the second clears what the first left
        target = _changed(tmp_path, Recipe("x", "", instead=instead))
        assert getattr(target, is_there)() is (instead != "nothing")
    assert _changed(tmp_path, Recipe("x", "")).read_bytes() == b"0123456789"


def test_recipes_are_drawn_by_their_seed_and_almost_all_change_something(tmp_path):
    source = tmp_path / "source.txt"
    source.write_bytes(bytes(range(200)) * 10)
    drawn = [
        [endurance_mutations.draw_recipe("x", source, rng) for _ in range(200)]
        for rng in (np.random.default_rng(seed) for seed in (0, 0, 1))
    ]
    assert drawn[0] == drawn[1] != drawn[2]
    sound = source.read_bytes()
    changed = [
        recipe.instead or _changed(tmp_path, recipe, sound).read_bytes() != sound
        for recipe in drawn[0]
    ]
    assert np.mean([bool(x) for x in changed]) > 0.95
    assert {recipe.instead for recipe in drawn[0]} > {""}


def test_results_are_compared_whole():
    digest, one = endurance_mutations.digest, np.arange(6, dtype=np.float32)
    values = [
        *(one, one.reshape(2, 3), one.astype(np.float64), [one], (one, one), {"a": one}),
        *({"b": one}, "a", b"a", ["a", "b"], [["a"], "b"], None, 1, 1.5, np.nan, Outcome("same")),
    ]
    assert len({digest(value) for value in values}) == len(values)
    assert digest({"a": 1, "b": np.nan}) == digest({"b": np.nan, "a": 1})


def test_every_end_of_a_reader_is_told_and_the_next_file_is_read(world, tmp_path):
    worker = Worker(broken_readers.READERS, world, tmp_path / "scratch", patience=2)
    ends = {
        "A": "crash",
        "T": "traceback",
        "C": "clean",
        "H": "hang",
        "M": "traceback",
        "N": "wrong",
        "a": "same",
        "ax": "wrong",
    }
    try:
        for name, reader in broken_readers.READERS.items():
            for text, kind in ends.items():
                recipe = Recipe(name, "", ((0, len(text), text.encode().hex()),))
                wanted = "other" if text == "ax" and not reader.sound else kind
                assert worker.judge(recipe).kind == wanted, text
    finally:
        worker.close()


def test_a_few_hundred_mutated_files_break_no_cheap_reader(world, tmp_path):
    cheap = {name: reader for name, reader in READERS.items() if not reader.tensorflow}
    assert len(cheap) > 30
    with contextlib.closing(Worker(cheap, world, tmp_path / "scratch")) as worker:
        shares = dict.fromkeys(cheap, 10)
        found = list(endurance_mutations.mutate(cheap, shares, worker, 9))
    failed = [(recipe, outcome) for recipe, outcome in found if outcome.kind in FAILURES]
    assert not failed and len(found) == 10 * len(cheap)
    assert sum(outcome.kind == "clean" for _, outcome in found) > len(found) // 2


# --- kills ------------------------------------------------------------------------------------


def test_kills_are_of_commands_that_write():
    killed = {name.partition(" of ")[0] for name in endurance_commands.COMMANDS}
    assert killed < set(COMMANDS)
    left = set(COMMANDS) - killed
    read_only = {"verify", "summary", "demo"}
    # Too slow, or from the network.
    others = {"model-card", "extract-beam", "prepare-revisited", "train-how", "index push"}
    assert left == read_only | others


def test_a_kill_in_mid_work_and_its_rerun(world, tmp_path):
    arena = Arena(world, tmp_path / "arena")
    sound = arena.sound("index remove")
    assert sound.old != sound.result and 0 < sound.change <= sound.seconds
    early = Kill("index remove", 9, 0.0, after_change=True)
    late = Kill("index remove", 9, 600.0, after_change=False)  # it has ended by then
    assert arena.kill(early).kind in ("same", "clean")
    outcome = arena.kill(late)
    assert outcome.kind == "clean" and "are not in" in outcome.words


def test_a_loss_a_leftover_and_another_result_are_wrong(world, tmp_path, monkeypatch):
    name, arena = "index remove", Arena(world, tmp_path / "arena")
    arena.sound(name)
    late, kept = Kill(name, 9, 600.0, after_change=False), arena._sound[name]

    def kill(**changes):
        arena._sound[name] = dataclasses.replace(kept, **changes)
        return arena.kill(late)

    assert "neither the old" in kill(old=None, result=None).words
    assert "left over or missing: ['x']" in kill(listing=[*kept.listing, "x"]).words
    assert "another result" in kill(old=kept.result, result=kept.old).words
    assert kill().kind == "clean"


@pytest.mark.slow
@pytest.mark.parametrize("name", ["records", "index add", "extract", "train"])
def test_killed_commands_continue(world, tmp_path, name):
    arena = Arena(world, tmp_path / "arena")
    outcomes = list(endurance_kills.kill_commands(arena, {name: 3}, seed=1))
    assert not [(k, o) for k, o in outcomes if o.kind in FAILURES]


# --- requests ---------------------------------------------------------------------------------


def test_a_bomb_of_scans_is_small_and_takes_many_passes():
    bomb = scan_bomb(np.random.default_rng(0))
    assert len(bomb) < 1 << 20 and bomb.count(b"\xff\xda") > 3000
    assert (
        encode_photo(np.zeros((8, 8, 3), np.uint8), "JPEG", progressive=True).count(b"\xff\xda") > 1
    )


@pytest.mark.slow
def test_half_a_minute_of_mixed_requests(world, tmp_path):
    pytest.importorskip("uvicorn")
    outcomes = list(send_requests(world, tmp_path / "requests", 30, seed=1))
    assert not [(r, o) for r, o in outcomes if o.kind in FAILURES]
    assert {request.target for request, _ in outcomes} == {"serving", "page"}


# --- the whole --------------------------------------------------------------------------------


def test_the_table_counts_each_kind_and_all():
    rows = {
        "a": collections.Counter(clean=2, other=1),
        "b": collections.Counter(same=3, hang=1),
    }
    assert endurance.table(rows)[2:] == [
        "| a | 3 | 2 | 0 | 0 | 0 | 0 | 0 |",
        "| b | 4 | 0 | 3 | 0 | 0 | 0 | 1 |",
        "| all | 7 | 2 | 3 | 0 | 0 | 0 | 1 |",
    ]


def _attack(kind):
    return Attack("file: x", Recipe("x", "y", ((1, 2, "ff"),)), Outcome(kind, "words"))


def test_a_failure_is_written_with_its_recipe_and_ends_with_1(tmp_path, monkeypatch, capsys):
    monkeypatch.setattr(endurance, "attacks", lambda *_: map(_attack, ("clean", "crash")))
    path = tmp_path / "found.json"
    with pytest.raises(SystemExit, match="1 attacks failed"):
        endurance.endure(EnduranceConfig(output=str(path)))
    assert "| file: x | 2 | 1 | 0 | 0 | 0 | 1 | 0 |" in capsys.readouterr().out
    found = json.loads(path.read_text())
    assert found["failures"][0]["recipe"] == {
        "reader": "x",
        "file": "y",
        "edits": [[1, 2, "ff"]],
        "instead": "",
    }
    monkeypatch.setattr(endurance, "attacks", lambda *_: map(_attack, ("clean", "same", "other")))
    endurance.endure(EnduranceConfig())


def test_failures_are_tried_again(tmp_path, monkeypatch, capsys):
    monkeypatch.setattr(endurance, "READERS", broken_readers.READERS)
    recipes = [Recipe("without", "", ((0, 1, letter.encode().hex()),)) for letter in "TC"]
    failures = [{"row": "file: without", "recipe": dataclasses.asdict(r)} for r in recipes]
    path = tmp_path / "found.json"
    path.write_text(json.dumps({"failures": failures}))
    with pytest.raises(SystemExit, match="1 attacks failed"):
        endurance.endure(EnduranceConfig(repeat=str(path)))
    assert "| file: without | 2 | 1 | 0 | 0 | 1 | 0 | 0 |" in capsys.readouterr().out


def test_flags_are_checked_at_once(monkeypatch, capsys):
    with pytest.raises(InputError, match="--kills=-1 must be at least 0"):
        EnduranceConfig(kills=-1)
    monkeypatch.setattr(sys, "argv", ["endurance.py", "--help"])
    with pytest.raises(SystemExit, match="0"):
        command.main(endurance.endure, EnduranceConfig)
    assert "--mutations" in capsys.readouterr().out

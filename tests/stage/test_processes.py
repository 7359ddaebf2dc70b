"""Work in many processes: all of it done, little of it under way at once."""

import os
import time

import pytest

from dolg_tf.stage.processes import ProcessDied, process_count, run_in_processes


def square(number):
    return number * number


def fails_at_three(number):
    if number == 3:
        raise KeyError("three")
    return number


def process_of(seconds):
    time.sleep(seconds)
    return os.getpid()


def dies_at_b(path):
    if path == "b":
        os.abort()
    time.sleep(10)


@pytest.mark.parametrize("processes", [1, 2])
def test_all_is_done_and_few_items_are_made_ahead(processes):
    made, results = [], []

    def items():
        for number in range(30):
            made.append(number)
            yield number

    for result in run_in_processes(square, items(), processes):
        results.append(result)
        assert len(made) <= len(results) + processes + 1
    assert sorted(results) == [number * number for number in range(30)]


@pytest.mark.parametrize("processes", [1, 2])
def test_error_of_the_work_is_raised(processes):
    with pytest.raises(KeyError, match="three"):
        list(run_in_processes(fails_at_three, range(30), processes))


def test_a_process_that_dies_is_told_with_what_it_was_at():
    with pytest.raises(ProcessDied, match=r"process was killed at one of (a, )?b, perhaps"):
        list(run_in_processes(dies_at_b, ["a", "b"], 2))


def test_processes_end_when_the_caller_stops():
    done = run_in_processes(process_of, [0.0, *[60.0] * 9], 2)
    worker = next(done)
    start = time.monotonic()
    done.close()
    assert time.monotonic() - start < 30
    with pytest.raises(ProcessLookupError):
        os.kill(worker, 0)


def test_count():
    assert process_count(3, 10) == 3 and process_count(3, 2) == 2 and process_count(3, 0) == 1
    assert process_count(0, 10**6) == os.cpu_count()

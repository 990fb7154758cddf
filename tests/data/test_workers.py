"""A task that hangs, crashes or raises is answered with a failure and takes nothing along.

The tasks are Python expressions, evaluated by `eval` in real processes.
"""

import time
from multiprocessing import active_children

import pytest

from reelign.data.workers import Failure, run_tasks

CRASH, HANG = "__import__('os')._exit(3)", "__import__('time').sleep(120)"


@pytest.mark.parametrize("workers", [1, 2])
def test_one_bad_task_costs_only_its_own_result(workers):
    tasks = [("1 + 1",), (CRASH,), ("1 / 0",), (HANG,), ("2 * 3",)]
    began = time.monotonic()
    found = dict(run_tasks(eval, tasks, workers, seconds=2.0))
    assert time.monotonic() - began < 60
    assert (found[0], found[4]) == (2, 6)
    assert found[1] == Failure("the decoder crashed (exit code 3)")
    assert found[2] == Failure("the decoder crashed (exit code 1)")
    assert found[3] == Failure("took longer than 2 s to decode")
    assert len(found) == 5


def test_a_process_that_dies_between_two_tasks_costs_only_the_next():
    results = run_tasks(eval, [("1",), ("2",), ("3",)], 1, seconds=30)
    assert next(results) == (0, 1)
    for process in active_children():
        process.kill()
        process.join()
    assert list(results) == [(1, Failure("the decoder crashed (exit code -9)")), (2, 3)]


def test_one_process_answers_in_order_and_serves_many_tasks():
    found = list(run_tasks(eval, [(f"({n}, __import__('os').getpid())",) for n in range(5)], 1, seconds=30))
    assert [index for index, _ in found] == [0, 1, 2, 3, 4]
    assert [result[0] for _, result in found] == [0, 1, 2, 3, 4]
    assert len({result[1] for _, result in found}) == 1


def test_no_tasks_need_no_process():
    assert list(run_tasks(eval, [], 4, seconds=1)) == []

import json
import sys

import pytest

from reelign.errors import ReelignError
from reelign.train.ledger import Ledger
from reelign.train.track import Tracker


def rows(folder):
    return [json.loads(line) for line in (folder / "metrics.jsonl").read_text().splitlines()]


def test_numbers_are_kept_as_lines_of_json(tmp_path):
    tracker = Tracker(tmp_path, enabled=True, sinks=[])
    tracker.log(1, loss=0.5)
    tracker.log(2, loss=0.25, lr=1e-3)
    tracker.close()
    assert rows(tmp_path) == [{"step": 1, "loss": 0.5}, {"step": 2, "loss": 0.25, "lr": 1e-3}]


def test_a_resumed_run_forgets_the_steps_it_takes_again(tmp_path):
    first = Tracker(tmp_path, enabled=True, sinks=[])
    for step in range(1, 6):
        first.log(step, loss=float(step))
    with (tmp_path / "metrics.jsonl").open("a") as file:
        file.write('{"step": 6, "lo')
    second = Tracker(tmp_path, enabled=True, sinks=[])
    second.resume(3)
    second.log(4, loss=40.0)
    second.close()
    assert [(row["step"], row["loss"]) for row in rows(tmp_path)] == [(1, 1.0), (2, 2.0), (3, 3.0), (4, 40.0)]


def test_other_ranks_write_nothing(tmp_path):
    tracker = Tracker(tmp_path, enabled=False, sinks=[])
    tracker.log(1, loss=0.5)
    tracker.close()
    assert list(tmp_path.iterdir()) == []


def test_tensorboard_gets_the_same_numbers(tmp_path):
    from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

    tracker = Tracker(tmp_path, enabled=True, sinks=["tensorboard"])
    tracker.log(7, loss=0.5)
    tracker.close()
    place = next(tmp_path.rglob("events.out.tfevents*")).parent
    events = EventAccumulator(str(place))
    events.Reload()
    assert [(event.step, event.value) for event in events.Scalars("loss")] == [(7, 0.5)]


def test_a_sink_that_is_not_installed_says_what_to_install(tmp_path, monkeypatch):
    monkeypatch.setitem(sys.modules, "wandb", None)
    with pytest.raises(ReelignError, match="pip install wandb"):
        Tracker(tmp_path, enabled=True, sinks=["wandb"])


def test_the_ledger_writes_a_phase_also_when_it_fails(tmp_path):
    ledger = Ledger(tmp_path / "ledger.jsonl")
    with ledger.phase("good") as cost:
        cost.nfe, cost.clips = 12, 3
    with pytest.raises(RuntimeError), ledger.phase("bad") as cost:
        cost.clips = 1
        raise RuntimeError
    good, bad = (json.loads(line) for line in (tmp_path / "ledger.jsonl").read_text().splitlines())
    assert (good["phase"], good["nfe"], good["clips"], good["completed"]) == ("good", 12, 3, True)
    assert (bad["phase"], bad["clips"], bad["completed"]) == ("bad", 1, False)
    assert good["seconds"] >= 0
    assert good["peak_memory_bytes"] > 0

"""Numbers over steps: JSON lines always, further places when asked for and installed."""

import json
import sys

import pytest

from reelign.errors import ReelignError
from reelign.train.track import Sink, Tracker, read_metrics


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


@pytest.mark.parametrize(("sink", "module"), [("wandb", "wandb"), ("tensorboard", "tensorboard")])
def test_a_sink_that_is_not_installed_says_what_to_install(tmp_path, monkeypatch, sink: Sink, module):
    for name in [name for name in sys.modules if name.startswith(("torch.utils.tensorboard", module))]:
        monkeypatch.delitem(sys.modules, name)
    monkeypatch.setitem(sys.modules, module, None)
    with pytest.raises(ReelignError, match=f"pip install {sink}"):
        Tracker(tmp_path, sinks=[sink])
    assert Tracker(tmp_path, enabled=False, sinks=[sink]).path == tmp_path / "metrics.jsonl"


def test_resuming_at_the_beginning_of_a_new_folder_is_nothing(tmp_path):
    tracker = Tracker(tmp_path / "new")
    tracker.resume(0)
    assert not (tmp_path / "new").exists()


def test_all_rows_of_the_resumed_step_are_kept(tmp_path):
    """A step has its loss and, where it was validated, a second row."""
    tracker = Tracker(tmp_path)
    tracker.log(4, loss=0.5)
    tracker.log(4, score=0.9)
    tracker.log(5, loss=0.4)
    tracker.resume(4)
    assert rows(tmp_path) == [{"step": 4, "loss": 0.5}, {"step": 4, "score": 0.9}]


def test_another_rank_does_not_cut_the_file(tmp_path):
    main = Tracker(tmp_path)
    main.log(1, loss=0.5)
    Tracker(tmp_path, enabled=False).resume(0)
    assert rows(tmp_path) == [{"step": 1, "loss": 0.5}]


def test_a_torn_line_is_not_read(tmp_path):
    (tmp_path / "metrics.jsonl").write_text('{"step": 1, "loss": 0.5}\n{"step": 2, "lo')
    assert read_metrics(tmp_path / "metrics.jsonl") == [{"step": 1, "loss": 0.5}]

import errno
import json
import shutil

import pytest
import torch
import torch.distributed.checkpoint as dcp
from torch import nn

from reelign.errors import ReelignError
from reelign.train.checkpoint import MANIFEST, Checkpoints
from reelign.train.ema import Ema
from reelign.train.optim import OptimConfig, Optimizer


def state(seed: int, dtype=torch.float32, trained: int = 3):
    """A small model with its optimiser and average, some steps in."""
    torch.manual_seed(seed)
    model = nn.Sequential(nn.Linear(4, 8), nn.Linear(8, 2)).to(dtype)
    optimizer = Optimizer(model.named_parameters(), OptimConfig(lr=1e-2), total_steps=10)
    ema = Ema(model.named_parameters(), 0.9)
    for _ in range(trained):
        model(torch.randn(5, 4, dtype=dtype)).square().mean().backward()
        optimizer.step()
        ema.update()
    return model, {"weights": dict(model.named_parameters()), "optimizer": optimizer, "ema": ema, "step": trained}


def flat(saved):
    return {
        **{f"w.{k}": v for k, v in saved["weights"].items()},
        **{f"o.{k}": torch.as_tensor(v) for k, v in saved["optimizer"].state_dict().items()},
        **{f"e.{k}": torch.as_tensor(v) for k, v in saved["ema"].state_dict().items()},
    }


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_what_is_loaded_is_what_was_saved_and_trains_on_alike(tmp_path, dtype):
    model, saved = state(0, dtype)
    path = Checkpoints(tmp_path).save(3, saved)
    other, loaded = state(1, dtype, trained=1)
    assert Checkpoints(tmp_path).load(path, loaded)["step"] == 3
    wanted, found = flat(saved), flat(loaded)
    assert wanted.keys() == found.keys()
    assert all(torch.equal(found[name], value) for name, value in wanted.items())
    batch = torch.randn(5, 4, dtype=dtype)
    for network, part in ((model, saved), (other, loaded)):
        network(batch).square().mean().backward()
        part["optimizer"].step()
    assert all(torch.equal(a, b) for a, b in zip(model.parameters(), other.parameters(), strict=True))


def test_a_flipped_byte_is_found_and_the_checkpoint_before_is_used(tmp_path, caplog):
    kept = Checkpoints(tmp_path)
    first, second = kept.save(1, state(0)[1]), kept.save(2, state(0)[1])
    assert kept.latest() == second
    data = next(second.glob("*.distcp"))
    content = bytearray(data.read_bytes())
    content[len(content) // 2] ^= 1
    data.write_bytes(content)
    assert kept.latest() == first
    assert data.name in caplog.text


@pytest.mark.parametrize("damage", ["manifest gone", "manifest cut", "file gone"])
def test_a_checkpoint_that_is_not_whole_is_none(tmp_path, damage):
    kept = Checkpoints(tmp_path)
    first, second = kept.save(1, state(0)[1]), kept.save(2, state(0)[1])
    if damage == "manifest gone":
        (second / MANIFEST).unlink()
    elif damage == "manifest cut":
        (second / MANIFEST).write_text((second / MANIFEST).read_text()[:40])
    else:
        next(second.glob("*.distcp")).unlink()
    assert kept.latest() == first


def test_a_full_disk_is_one_message_and_costs_no_earlier_checkpoint(tmp_path, monkeypatch):
    kept = Checkpoints(tmp_path)
    first = kept.save(1, state(0)[1])

    def full(*arguments, **options):
        raise OSError(errno.ENOSPC, "No space left on device")

    monkeypatch.setattr(dcp, "save", full)
    with pytest.raises(ReelignError, match=r"No space left on device.*Earlier checkpoints are intact"):
        kept.save(2, state(0)[1])
    assert [path.name for path in tmp_path.iterdir()] == [first.name]
    assert kept.latest() == first


def test_the_newest_two_and_the_best_are_kept(tmp_path):
    kept = Checkpoints(tmp_path, keep_last=2)
    for step, metric in enumerate([0.1, 0.9, 0.3, 0.4, None], 1):
        kept.save(step, state(0)[1], metric)
    assert sorted(path.name for path in tmp_path.iterdir()) == ["step-00000002", "step-00000004", "step-00000005"]
    best = kept.best()
    assert best is not None
    assert best.name == "step-00000002"


def test_without_a_checkpoint_there_is_none(tmp_path):
    assert Checkpoints(tmp_path / "none").latest() is None
    assert Checkpoints(tmp_path / "none").best() is None


def test_a_checkpoint_of_another_model_is_refused(tmp_path):
    path = Checkpoints(tmp_path).save(1, state(0)[1])
    weights = {"other.weight": torch.zeros(3)}
    with pytest.raises(ReelignError, match="another recipe"):
        Checkpoints(tmp_path).load(path, {"weights": weights})


def test_the_manifest_names_every_file(tmp_path):
    path = Checkpoints(tmp_path).save(1, state(0)[1])
    files = json.loads((path / MANIFEST).read_text())["files"]
    assert set(files) == {entry.name for entry in path.iterdir()} - {MANIFEST}
    shutil.rmtree(path)

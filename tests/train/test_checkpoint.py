"""A checkpoint is whole or it is none: order of writing, damage, full disks, what is kept, exact round trips."""

import errno
import json
import shutil

import pytest
import torch
import torch.distributed.checkpoint as dcp
from torch import nn

from disk import files_no_larger_than
from reelign.errors import ReelignError
from reelign.train import checkpoint
from reelign.train.checkpoint import MANIFEST, Checkpoints
from reelign.train.ema import Ema
from reelign.train.optim import OptimConfig, Optimizer

pytestmark = pytest.mark.filterwarnings("ignore:torch.distributed is disabled")


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


def test_the_manifest_is_written_last_and_the_name_is_given_after_it(tmp_path, monkeypatch):
    """Killed at the manifest, there are tensors under another name and no new checkpoint."""
    kept = Checkpoints(tmp_path)
    first = kept.save(1, state(0)[1])
    seen = []

    def killed(path, text):
        seen.append((sorted(entry.name for entry in path.parent.iterdir()), sorted(json.loads(text)["files"])))
        raise KeyboardInterrupt

    with monkeypatch.context() as patch, pytest.raises(KeyboardInterrupt):
        patch.setattr(checkpoint, "write_atomically", killed)
        kept.save(2, state(0)[1])
    ((on_disk, named),) = seen
    assert on_disk == named
    assert any(name.endswith(".distcp") for name in on_disk)
    assert not (tmp_path / "step-00000002").exists()
    assert kept.latest() == first
    assert kept.save(2, state(0)[1]) == kept.latest()


def test_a_flipped_bit_anywhere_in_any_file_is_found(tmp_path):
    kept = Checkpoints(tmp_path)
    first, second = kept.save(1, state(0)[1], 0.1), kept.save(2, state(0)[1], 0.2)
    files = sorted(second.iterdir())
    assert {file.name for file in files} >= {".metadata", MANIFEST}
    for file in files:
        content = file.read_bytes()
        for place in range(0, len(content), max(1, len(content) // 40)):
            changed = bytearray(content)
            changed[place] ^= 1
            file.write_bytes(changed)
            assert kept.latest() == first, (file.name, place)
            assert kept.best() == first, (file.name, place)
        file.write_bytes(content)
    assert kept.latest() == kept.best() == second


def test_when_every_checkpoint_is_damaged_there_is_none(tmp_path):
    kept = Checkpoints(tmp_path)
    for step in (1, 2):
        (kept.save(step, state(0)[1], 0.5) / MANIFEST).write_text("{")
    assert kept.latest() is None
    assert kept.best() is None


def test_a_damaged_checkpoint_does_not_hinder_the_next(tmp_path):
    kept = Checkpoints(tmp_path, keep_last=2)
    kept.save(1, state(0)[1], 0.5)
    damaged = kept.save(2, state(0)[1], 0.9)
    (damaged / MANIFEST).write_text("no json")
    for step in (3, 4, 5):
        assert kept.save(step, state(0)[1], 0.1 * step) == kept.latest()
    assert not damaged.exists()


def test_a_write_that_the_kernel_refuses_is_one_message_and_costs_no_earlier_checkpoint(tmp_path):
    kept = Checkpoints(tmp_path)
    first = kept.save(1, state(0)[1], 0.5)
    with files_no_larger_than(500), pytest.raises(ReelignError, match="free some space") as refused:
        kept.save(2, state(0)[1], 0.9)
    assert "step-00000002" in str(refused.value)
    assert [path.name for path in tmp_path.iterdir()] == [first.name]
    assert kept.latest() == kept.best() == first
    assert kept.save(2, state(0)[1], 0.9) == kept.latest()


def test_a_disk_that_fills_up_at_the_manifest_costs_no_earlier_checkpoint(tmp_path, monkeypatch):
    kept = Checkpoints(tmp_path)
    first = kept.save(1, state(0)[1])

    def full(path, text):
        raise OSError(errno.ENOSPC, "No space left on device")

    monkeypatch.setattr(checkpoint, "write_atomically", full)
    with pytest.raises(ReelignError, match="No space left on device"):
        kept.save(2, state(0)[1])
    assert [path.name for path in tmp_path.iterdir()] == [first.name]


def test_of_equally_good_checkpoints_the_newest_is_the_best(tmp_path):
    kept = Checkpoints(tmp_path, keep_last=5)
    for step, metric in enumerate([0.2, 0.7, 0.7, 0.1, None], 1):
        kept.save(step, state(0)[1], metric)
    assert kept.best() == tmp_path / "step-00000003"


def test_tensors_come_back_bit_by_bit(tmp_path):
    """Also those that arithmetic changes: negative zero, subnormal numbers, infinities, no number."""
    awkward = torch.tensor([-0.0, 1e-40, 1.0 + 2**-23, torch.inf, -torch.inf, torch.nan])
    saved = {"tensors": {"float": awkward, "bfloat": awkward.bfloat16(), "whole": torch.arange(3)}}
    path = Checkpoints(tmp_path).save(1, saved)
    empty = {"tensors": {name: torch.zeros_like(value) for name, value in saved["tensors"].items()}}
    Checkpoints(tmp_path).load(path, empty)
    for name, value in saved["tensors"].items():
        found = empty["tensors"][name]
        assert found.dtype == value.dtype
        assert torch.equal(found.view(torch.uint8), value.view(torch.uint8)), name


def test_plain_values_come_back_from_the_manifest(tmp_path):
    values = {"step": 7, "loader": {"epoch": 1, "position": 5}, "note": "x", "rate": 0.1}
    path = Checkpoints(tmp_path).save(7, values | {"weights": {"w": torch.ones(1)}})
    found = Checkpoints(tmp_path).load(path, {"weights": {"w": torch.zeros(1)}, "step": 0})
    assert {name: found[name] for name in values} == values


@pytest.mark.parametrize("shape", [(4,), (2, 3)])
def test_a_checkpoint_with_other_sizes_is_refused(tmp_path, shape):
    path = Checkpoints(tmp_path).save(1, {"weights": {"w": torch.ones(3)}})
    with pytest.raises(ReelignError, match="does not fit this run"):
        Checkpoints(tmp_path).load(path, {"weights": {"w": torch.zeros(shape)}})


def test_a_float32_checkpoint_continues_in_bfloat16_from_its_master_weights(tmp_path):
    model, saved = state(0)
    path = Checkpoints(tmp_path).save(3, saved)
    rounded, loaded = state(1, torch.bfloat16)
    Checkpoints(tmp_path).load(path, loaded)
    wanted = dict(model.named_parameters())
    for name, parameter in rounded.named_parameters():
        assert torch.equal(parameter, wanted[name].to(torch.bfloat16))
        assert torch.equal(loaded["optimizer"].masters[name], wanted[name])

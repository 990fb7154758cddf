"""Two ranks are one rank with the work divided: real processes over gloo, FSDP2, the loop of `stages/sft.py`."""

import shutil
from pathlib import Path
from typing import Any

import pytest
import torch

from ranks import Job, Network, network, run_alone, run_ranks
from reelign.train.parallel import World, blocks, full

pytestmark = pytest.mark.filterwarnings("ignore:torch.distributed is disabled")
CLOSE = {"rtol": 1e-5, "atol": 1e-5}
"""float32: two ranks add the same numbers in another order."""


@pytest.fixture(scope="module")
def alone(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Any]:
    folder = tmp_path_factory.mktemp("alone")
    return run_alone(Job(str(folder))) | {"checkpoints": folder / "checkpoints"}


@pytest.fixture(scope="module")
def together(tmp_path_factory: pytest.TempPathFactory) -> list[dict[str, Any]]:
    folder = tmp_path_factory.mktemp("together")
    return [rank | {"checkpoints": folder / "checkpoints"} for rank in run_ranks(2, Job(str(folder)))]


def copy_checkpoint(found: dict[str, Any], step: int, folder: Path) -> None:
    """What another run goes on from."""
    name = f"step-{step:08d}"
    shutil.copytree(found["checkpoints"] / name, folder / "checkpoints" / name)


def same(found: dict, wanted: dict, **tolerance: float) -> None:
    assert found.keys() == wanted.keys()
    for name, value in wanted.items():
        torch.testing.assert_close(found[name], value, msg=lambda m, name=name: f"{name}: {m}", **tolerance)


def test_two_ranks_see_the_losses_and_gradient_norms_of_one(alone, together) -> None:
    assert list(alone["losses"]) == list(range(6))
    for rank in together:
        assert rank["losses"] == pytest.approx(alone["losses"], rel=1e-5)
        assert rank["norms"] == pytest.approx(alone["norms"], rel=1e-5)


def test_two_ranks_end_with_the_weights_and_the_average_of_one(alone, together) -> None:
    start = dict(network().named_parameters())
    assert all(not torch.equal(alone["weights"][name], value) for name, value in start.items())
    for rank in together:
        same(rank["weights"], alone["weights"], **CLOSE)
        same(rank["average"], alone["average"], **CLOSE)


def test_every_rank_holds_the_same_full_weights(together) -> None:
    first, second = together
    same(first["weights"], second["weights"], rtol=0, atol=0)
    same(first["average"], second["average"], rtol=0, atol=0)


def test_validation_with_the_averaged_weights_gives_the_same_on_two_ranks(alone, together) -> None:
    for rank in together:
        same(rank["validated"], alone["validated"], **CLOSE)


def test_each_rank_keeps_only_its_part(alone, together) -> None:
    total = sum(p.numel() for p in network().parameters())
    assert alone["sharded"] == total
    assert sum(rank["sharded"] for rank in together) == total
    assert max(rank["sharded"] for rank in together) < 0.7 * total


def test_each_block_is_gathered_by_itself_and_then_the_rest(alone, together) -> None:
    """So that a rank never holds all weights at once."""
    assert alone["units"] == []
    assert all(rank["units"] == ["", "blocks.0", "blocks.1"] for rank in together)


def test_accumulation_changes_nothing_on_one_rank(alone, tmp_path) -> None:
    found = run_alone(Job(str(tmp_path), accumulate=2))
    assert found["losses"] == pytest.approx(alone["losses"], rel=1e-5)
    same(found["weights"], alone["weights"], **CLOSE)


def test_a_checkpoint_of_two_ranks_goes_on_on_one(alone, together, tmp_path) -> None:
    copy_checkpoint(together[0], 4, tmp_path)
    found = run_alone(Job(str(tmp_path)))
    assert found["resumed_at"] == 4
    assert found["losses"] == pytest.approx({step: alone["losses"][step] for step in (4, 5)}, rel=1e-5)
    same(found["weights"], alone["weights"], **CLOSE)
    same(found["average"], alone["average"], **CLOSE)


def test_a_checkpoint_of_one_rank_goes_on_on_two_that_accumulate(alone, tmp_path) -> None:
    copy_checkpoint(alone, 2, tmp_path)
    for rank in run_ranks(2, Job(str(tmp_path), accumulate=2)):
        assert rank["resumed_at"] == 2
        same(rank["weights"], alone["weights"], **CLOSE)
        same(rank["average"], alone["average"], **CLOSE)


def test_two_ranks_go_on_in_bfloat16_and_agree_to_the_bit(tmp_path) -> None:
    """The ranks round like each other; one rank alone adds in another order, and bfloat16 keeps three digits."""
    whole = run_alone(Job(str(tmp_path), dtype="bfloat16"))
    for step in (4, 6):
        shutil.rmtree(tmp_path / "checkpoints" / f"step-{step:08d}")
    first, second = run_ranks(2, Job(str(tmp_path), dtype="bfloat16"))
    assert first["resumed_at"] == second["resumed_at"] == 2
    assert first["losses"] == pytest.approx({step: whole["losses"][step] for step in (2, 3, 4, 5)}, rel=0.03)
    assert all(value.dtype == torch.bfloat16 for value in whole["weights"].values())
    assert all(value.dtype == torch.float32 for value in first["weights"].values()), "the shards are the masters"
    same(first["weights"], second["weights"], rtol=0, atol=0)
    same(first["average"], whole["average"], rtol=0.03, atol=0.03)


def test_alone_every_method_is_valid_and_changes_nothing(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("WORLD_SIZE", raising=False)
    world, model = World.start(), network()
    world.shard(model)
    world.barrier()
    assert (world.rank, world.size, world.mesh, world.is_main) == (0, 1, None, True)
    assert type(model) is Network
    value = torch.tensor([1.0, 3.0])
    assert all(torch.equal(found, value) for found in (world.mean(value), world.sum(value), full(value)))
    world.stop()


def test_blocks_are_the_modules_whose_classes_the_network_names() -> None:
    model = network()
    assert blocks(model) == list(model.blocks)
    assert blocks(torch.nn.Linear(2, 2)) == []

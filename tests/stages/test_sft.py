"""The stage as a user runs it: killed, interrupted, on two ranks, full and LoRA."""

import json
import shutil
import signal
from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from diffusers import WanPipeline
from safetensors.torch import load_file

from command import DEMO, TINY, on_ranks, reelign, torchrun
from forks import Fork
from miniatures import thin_miniature
from reelign.models.load import load_model


def arguments(folder: Path, *more: str) -> list[str | Path]:
    return ["sft", DEMO, *TINY, f"runs={folder}", "name=r", *more]


def weights(folder: Path) -> dict[str, torch.Tensor]:
    return load_file(folder / "r" / "sft" / "model" / "transformer" / "diffusion_pytorch_model.safetensors")


def losses(folder: Path) -> dict[int, float]:
    lines = (folder / "r" / "sft" / "metrics.jsonl").read_text().splitlines()
    return {row["step"]: row["loss"] for row in map(json.loads, lines) if "loss" in row}


@pytest.fixture(scope="module")
def one_rank(tmp_path_factory):
    """The uninterrupted run on one rank."""
    folder = tmp_path_factory.mktemp("one")
    done = reelign(*arguments(folder), CUDA_VISIBLE_DEVICES="")
    assert done.returncode == 0, done.stderr
    return folder


def at_step(folder: Path, step: int) -> Callable[[], bool]:
    """Whether the log holds this step yet."""
    path = folder / "r" / "sft" / "metrics.jsonl"
    return lambda: path.exists() and f'"step": {step},' in path.read_text()


def test_training_changes_the_weights_and_lowers_no_guard(one_rank):
    before = load_model(thin_miniature(), device="cpu").pipeline.transformer.state_dict()
    after = weights(one_rank)
    assert any(not torch.equal(after[name], value) for name, value in before.items() if name in after)
    assert sorted(losses(one_rank)) == list(range(1, 13))
    card = json.loads((one_rank / "r" / "sft" / "model" / "card.json").read_text())
    assert card["stage"] == "sft"
    assert card["parent"] == "base"
    assert set(card["scores"]) == {"text", "visual", "motion"}


def test_o_a_run_that_is_killed_thrice_ends_in_the_same_bits(one_rank, tmp_path):
    for step in (3, 7, 11):
        Fork(tmp_path, *arguments(tmp_path)).kill_when(at_step(tmp_path, step))
        assert not (tmp_path / "r" / "sft" / "stage.json").exists()
    again = reelign(*arguments(tmp_path), CUDA_VISIBLE_DEVICES="")
    assert again.returncode == 0, again.stderr
    wanted, found = weights(one_rank), weights(tmp_path)
    assert wanted.keys() == found.keys()
    assert all(torch.equal(found[name], value) for name, value in wanted.items())
    assert losses(tmp_path) == losses(one_rank)


def test_ctrl_c_saves_says_so_and_the_same_command_goes_on(one_rank, tmp_path):
    run = Fork(tmp_path, *arguments(tmp_path))
    run.signal_when(at_step(tmp_path, 5), signal.SIGINT)
    said = run.end(1)
    assert "the same command goes on" in said
    assert "Traceback" not in said
    assert reelign(*arguments(tmp_path), CUDA_VISIBLE_DEVICES="").returncode == 0
    assert all(torch.equal(weights(tmp_path)[name], value) for name, value in weights(one_rank).items())


def test_two_ranks_train_what_one_rank_trains(one_rank, tmp_path):
    done = torchrun(2, *arguments(tmp_path))
    assert done.returncode == 0, done.stderr
    alone, together = losses(one_rank), losses(tmp_path)
    assert alone.keys() == together.keys()
    assert all(together[step] == pytest.approx(loss, rel=1e-4) for step, loss in alone.items())
    for name, value in weights(one_rank).items():
        torch.testing.assert_close(weights(tmp_path)[name], value, rtol=1e-3, atol=2e-5, msg=name)


def test_a_checkpoint_of_two_ranks_goes_on_on_one(one_rank, tmp_path):
    """Two ranks run to the end; without their last checkpoint one rank goes on from the one before."""
    assert on_ranks(2, *arguments(tmp_path)).returncode == 0
    run = tmp_path / "r" / "sft"
    checkpoints = sorted((run / "checkpoints").glob("step-*"))
    shutil.rmtree(checkpoints[-1])
    (run / "stage.json").unlink()
    shutil.rmtree(run / "model")
    assert len(checkpoints) > 1
    again = reelign(*arguments(tmp_path), CUDA_VISIBLE_DEVICES="")
    assert again.returncode == 0, again.stderr
    for name, value in weights(one_rank).items():
        torch.testing.assert_close(weights(tmp_path)[name], value, rtol=1e-3, atol=2e-5, msg=name)


def test_a_finished_run_is_not_run_again(one_rank):
    before = (one_rank / "r" / "sft" / "metrics.jsonl").read_bytes()
    assert reelign(*arguments(one_rank), CUDA_VISIBLE_DEVICES="").returncode == 0
    assert (one_rank / "r" / "sft" / "metrics.jsonl").read_bytes() == before


def test_a_changed_recipe_trains_anew_and_loses_nothing(one_rank, tmp_path):
    shutil.copytree(one_rank / "r", tmp_path / "r")
    changed = reelign(*arguments(tmp_path, "sft.optim.lr=1e-2", "sft.steps=2"), CUDA_VISIBLE_DEVICES="")
    assert changed.returncode == 0, changed.stderr
    assert sorted(losses(tmp_path)) == [1, 2]
    new, old = weights(tmp_path), weights(one_rank)
    assert any(not torch.equal(new[name], value) for name, value in old.items())
    kept = tmp_path / "r" / "sft.before-1" / "model" / "transformer" / "diffusion_pytorch_model.safetensors"
    assert all(torch.equal(load_file(kept)[name], value) for name, value in old.items())


def test_a_lora_is_trained_saved_and_loaded_by_diffusers(tmp_path):
    done = reelign(*arguments(tmp_path, "sft.method=lora", "sft.lora.rank=4", "sft.steps=2", "sft.optim.lr=1e-3"))
    assert done.returncode == 0, done.stderr
    artifact = tmp_path / "r" / "sft" / "model"
    ours = load_model(artifact, device="cpu")
    theirs = WanPipeline.from_pretrained(Path(ours.pipeline.config._name_or_path))
    theirs.load_lora_weights(artifact)
    latents = torch.randn(1, *ours.latent_shape(17, 32, 32), generator=torch.Generator().manual_seed(0))
    conditions = ours.encode_text(["a large red circle moving left fast on a white background"])
    base = load_model(thin_miniature(), device="cpu").velocity(latents, torch.tensor([0.5]), conditions)
    wanted = ours.velocity(latents, torch.tensor([0.5]), conditions)
    ours.pipeline = theirs
    assert torch.equal(ours.velocity(latents, torch.tensor([0.5]), conditions), wanted)
    assert not torch.allclose(base, wanted)


def test_the_artifact_lies_between_the_parent_and_what_was_trained(tmp_path):
    """`interpolate` changes what is kept, not how it is trained."""
    few, share = ("sft.steps=2", "sft.validate_every=2", "sft.save_every=2"), 0.25
    for name, value in (("kept", share), ("whole", 1.0)):
        done = reelign(*arguments(tmp_path / name, *few, f"sft.interpolate={value}"), CUDA_VISIBLE_DEVICES="")
        assert done.returncode == 0, done.stderr
    assert losses(tmp_path / "kept") == losses(tmp_path / "whole")
    parent = load_model(thin_miniature(), device="cpu").pipeline.transformer.state_dict()
    kept, whole = weights(tmp_path / "kept"), weights(tmp_path / "whole")
    assert any(not torch.equal(value, parent[name]) for name, value in kept.items())
    for name, value in kept.items():
        torch.testing.assert_close(value, parent[name] + share * (whole[name] - parent[name]), rtol=1e-5, atol=1e-6)

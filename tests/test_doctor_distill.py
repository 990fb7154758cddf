"""What the doctor says of `distill:`, read off the recipe and rehearsed with the stage's own trainers."""

import json
from dataclasses import replace

import pytest
import torch

from command import DEMO, TINY, reelign
from reelign.doctor import examine
from reelign.doctor.distill_cost import count, matched
from reelign.doctor.distill_rehearsal import cache_error
from reelign.models.causal import CausalConfig, KVCache
from reelign.models.load import load_model
from reelign.recipe import load_recipe
from reelign.stages.distill_recipe import DistillConfig

TAUGHT = {"batch_size": 4, "micro_batch": 4, "updates": 4}
SMALL = {
    "prompts": [{"kind": "miniature", "count": 8}],
    "steps": 2,
    "few_step": {**TAUGHT, "critic_updates": 1},
    "causal": {"block": 1},
    "initialise": {**TAUGHT, "trajectories": 4},
    "self_forcing": {**TAUGHT, "critic_updates": 1},
}


def overrides(*more: str) -> list[str]:
    return [*TINY, "sft=null", f"distill={json.dumps(SMALL)}", *more]


def findings(*more: str):
    return {found.check: found for found in examine(load_recipe(DEMO, overrides(*more))) if "distill" in found.check}


@pytest.fixture(scope="module")
def healthy():
    return findings()


def test_a_healthy_recipe_passes_and_says_what_it_will_cost(healthy):
    assert all(found.passed for found in healthy.values()), [str(f) for f in healthy.values() if not f.passed]
    assert {"distill.prompts", "distill.teacher", "distill.causal", "distill.memory", "distill.cost"} <= healthy.keys()
    assert "5 blocks of 1 latent frame;" in healthy["distill.causal"].sentence
    assert "network evaluations" in healthy["distill.cost"].sentence


def test_the_rehearsal_looks_at_gradients_ranks_and_the_cache_of_every_part(healthy):
    said = " ".join(f"{name} {found.sentence}" for name, found in healthy.items())
    for part in SMALL.keys() & {"few_step", "initialise", "self_forcing"}:
        assert part in said
    assert "cache" in said


@pytest.mark.parametrize(
    ("override", "check", "said"),
    [
        ("distill.causal.block=3", "distill.causal", "do not divide"),
        ("distill.causal.window=1", "distill.causal", ""),
        ("distill.prompts=[{kind: list, path: none.txt}]", "distill.prompts", "none.txt"),
        ("distill.teacher=no/such/folder", "distill.teacher", "no/such/folder"),
    ],
)
def test_what_is_wrong_is_a_line_that_fails_and_the_rehearsal_is_left_out(override, check, said):
    found = findings(override)
    assert not found[check].passed
    assert said in found[check].sentence
    assert "left out" in found["distill.rehearsal"].sentence


def test_evaluations_are_counted_as_the_trainers_count_them():
    """The mean over exit steps of what `Matching.one_update` reports, worked out by hand."""
    config = DistillConfig.model_validate(SMALL)
    part = config.few_step
    assert part is not None
    guided, plain = (matched(config, part, False, scale) for scale in (2.0, 1.0))
    clip = 1.5  # one or two steps
    assert plain.forward + plain.backward >= 4 * 2 * clip
    assert guided.forward == plain.forward + 4
    recipe = load_recipe(DEMO, overrides())
    spent = count(recipe, config, load_model("miniature", device="cpu"))
    assert {"few_step", "initialise", "self_forcing"} <= spent.keys()


def test_a_cache_that_forgets_is_found(monkeypatch):
    model = load_model("miniature", device="cpu")
    model.make_causal(CausalConfig(block=1))
    random = torch.Generator().manual_seed(0)
    clean, noise = (torch.randn(1, 16, frames, 8, 8, generator=random) for frames in (4, 1))
    conditions = model.encode_text(["a large red circle"])
    with torch.no_grad():
        assert cache_error(model, clean, noise, 0.5, conditions) < 1e-5
        monkeypatch.setattr(KVCache, "extended", lambda self, layers, config: replace(self, end=self.end + 1))
        assert cache_error(model, clean, noise, 0.5, conditions) > 1e-3


def test_the_command_fails_with_the_line_that_fails(tmp_path):
    done = reelign("doctor", DEMO, *overrides("distill.causal.block=3", f"runs={tmp_path}"), CUDA_VISIBLE_DEVICES="")
    assert done.returncode == 1
    assert "do not divide" in " ".join(done.stdout.split())
    assert "Traceback" not in done.stderr

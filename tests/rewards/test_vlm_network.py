import json
import shutil
from pathlib import Path

import numpy as np
import pytest
import torch
from safetensors.torch import load_file, save_file
from torch import Tensor

from reelign.data.clip import Clip
from reelign.errors import ReelignError
from reelign.flow.ties import tie_nll
from reelign.rewards.base import RewardError
from reelign.rewards.vlm_network import FILE, VlmLora, VlmNetwork, VlmNetworkConfig
from tiny_qwen import no_network, tiny_whole

assert no_network  # a fixture that every test here uses

KINDS = ("qwen2_vl", "qwen2_5_vl", "qwen3_vl")
AXES = ("visual", "text")
SMALL = VlmLora(rank=4, alpha=8, targets=["q_proj", "v_proj", "down_proj"])


@pytest.fixture(scope="module")
def bases(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    return {kind: tiny_whole(tmp_path_factory.mktemp(kind), kind) for kind in KINDS}


def build(base: Path, axes: tuple[str, ...] = AXES, seed: int = 0, **options) -> VlmNetwork:
    settings = {"lora": SMALL, "dtype": "float32", "least_pixels": 1} | options
    return VlmNetwork(VlmNetworkConfig(kind="vlm", base=base, **settings), axes, seed, "cpu")


@pytest.fixture(scope="module", params=KINDS)
def base(request: pytest.FixtureRequest, bases: dict[str, Path]) -> Path:
    return bases[request.param]


@pytest.fixture(scope="module")
def network(base: Path) -> VlmNetwork:
    return build(base)


def clip(seed: int, prompt: str = "a red fox", frames: int = 16, fps: float = 8.0, size: int = 64) -> Clip:
    noise = np.random.default_rng(seed).integers(0, 256, (frames, size // 4, size // 4, 3), np.uint8)
    return Clip(noise.repeat(4, 1).repeat(4, 2), fps, prompt, f"clip{seed}")


@torch.no_grad()
def said(network: VlmNetwork, *clips: Clip) -> Tensor:
    return network(network.read(clips))


def learned(network: VlmNetwork) -> dict[str, Tensor]:
    return {name: value for name, value in network.named_parameters() if value.requires_grad}


def test_a_number_for_each_axis_that_follows_frames_and_prompt(network):
    found = said(network, clip(0), clip(1), clip(0, "two blue boats on a lake"))
    assert found.shape == (3, 2, 1) and found.dtype == torch.float32
    assert (found[0] - found[1]).abs().min() > 1e-3
    assert abs(float(found[0, 1, 0] - found[2, 1, 0])) > 1e-3


def test_visual_quality_is_judged_without_knowing_the_prompt(network):
    visual, text = (said(network, clip(0), clip(0, "two blue boats on a lake"))[:, axis, 0] for axis in (0, 1))
    torch.testing.assert_close(visual[0], visual[1])
    assert abs(float(text[0] - text[1])) > 1e-3


def test_axes_keep_their_scores_in_another_order(base, network):
    turned = build(base, ("text", "visual"))
    turned.load_state_dict(network.state_dict())
    words = turned._backbone.language_model.embed_tokens
    words.new.data = words.new.data.flip(0)
    torch.testing.assert_close(said(turned, clip(0)), said(network, clip(0)).flip(1))


def test_a_batch_is_said_as_one_by_one(network):
    """Prompts and clips of several lengths and sizes, so that most rows are padded; 1e-5 is float32 reordered."""
    clips = [clip(0, "fox"), clip(1, "a very long story " * 30, 24), clip(2, "", 6, size=96), clip(3), clip(4, fps=4.0)]
    alone = torch.cat([said(network, one) for one in clips])
    torch.testing.assert_close(said(network, *clips), alone, atol=1e-5, rtol=1e-5)


def test_the_same_seed_gives_the_same_numbers_and_no_other_random_number_is_drawn(base, network):
    state = torch.get_rng_state()
    assert torch.equal(said(build(base), clip(0), clip(1)), said(network, clip(0), clip(1)))
    assert torch.equal(torch.get_rng_state(), state)
    assert not torch.equal(said(build(base, seed=1), clip(0)), said(network, clip(0)))


@pytest.mark.parametrize(("fps", "asked", "count"), [(8.0, 2.0, 4), (4.0, 2.0, 8), (100.0, 2.0, 4), (8.0, 4.0, 8)])
def test_so_many_frames_a_second_of_the_clips_own_rate_are_seen(bases, fps, asked, count):
    (seen,) = build(bases["qwen2_vl"], fps=asked).read([clip(0, fps=fps)])
    assert len(seen["pixels"]) == count


def test_a_wrong_frame_rate_is_another_input(network):
    right = clip(2, fps=8.0)
    wrong = Clip(right.frames, 4.0, right.prompt, right.id)
    assert (said(network, right) - said(network, wrong)).abs().max() > 1e-3


def test_frames_are_kept_between_the_two_numbers_of_pixels(base):
    small, large = clip(0, size=32), clip(0, size=256)
    network = build(base, least_pixels=64 * 64, most_pixels=128 * 128)
    heights = [int(seen["pixels"].shape[2]) for seen in network.read([small, large])]
    assert 64 <= heights[0] < 100 and 96 <= heights[1] <= 128


def test_what_is_read_is_small_and_lies_on_the_cpu(network):
    (seen,) = network.read([clip(0)])
    assert seen["pixels"].dtype == torch.uint8 and seen["pixels"].shape[1] == 3
    assert all(value.device.type == "cpu" for value in seen.values())


def test_only_adapters_new_words_and_head_learn(network):
    network(network.read([clip(0), clip(1)])).square().sum().backward()
    with_gradient = {name for name, value in network.named_parameters() if value.grad is not None}
    assert with_gradient == learned(network).keys()
    kinds = {"lora" if ".lora_" in name else name.split(".")[-2] for name in with_gradient}
    assert kinds == {"lora", "embed_tokens", "head"}
    assert all(value.dtype == torch.float32 for value in learned(network).values())
    network.zero_grad()


def test_every_targeted_layer_of_the_language_model_carries_an_adapter(base, network):
    layers = network._backbone.config.text_config.num_hidden_layers
    assert {target: len(names) for target, names in network.coverage.modules.items()} == dict.fromkeys(
        SMALL.targets, layers
    )
    assert sum(".lora_A." in name for name in learned(network)) == 3 * layers
    assert not any("visual" in name for name in learned(network))


@pytest.mark.parametrize("target", ["q_projection", "qkv"])  # the second is a layer of the vision tower alone
def test_a_target_that_matches_nothing_is_an_error(base, target):
    with pytest.raises(ReelignError, match=rf"'{target}' matches no linear layer.*Near names: .*q_proj"):
        build(base, lora=VlmLora(rank=4, alpha=8, targets=["v_proj", target]))


def test_the_vision_tower_learns_where_asked_and_is_saved(base, tmp_path):
    network = build(base, train_vision=True)
    network(network.read([clip(0), clip(1)]))[0].sum().backward()
    tower = {name: value for name, value in network.named_parameters() if "visual" in name}
    assert all(value.requires_grad and value.grad is not None for value in tower.values())
    with torch.no_grad():
        for value in tower.values():
            value.add_(0.01 * torch.ones_like(value))
    network.save(tmp_path)
    assert torch.equal(said(VlmNetwork.load(tmp_path, network.facts(), "cpu"), clip(0)), said(network, clip(0)))


def test_recomputed_activations_give_the_same_gradients(base):
    plain, saving = build(base).train(), build(base, gradient_checkpointing=True).train()
    for network in (plain, saving):
        network(network.read([clip(0), clip(1)])).square().sum().backward()
    for (name, one), other in zip(learned(plain).items(), learned(saving).values(), strict=True):
        torch.testing.assert_close(one.grad, other.grad, msg=name)


def lit(level: int, seed: int, prompt: str) -> Clip:
    noise = np.random.default_rng(seed).integers(-20, 21, (8, 32, 32, 3))
    return Clip((level + noise).clip(0, 255).astype(np.uint8), 4.0, prompt, f"{level}-{seed}")


def test_a_few_steps_tell_bright_from_dark(base):
    network = build(base, template="{prompt} <|VQ_reward|> <|TA_reward|>")
    prompts = ["a fox", "a lake at night", "two boats", "snow"] * 2
    bright = network.read([lit(190, seed, prompt) for seed, prompt in enumerate(prompts)])
    dark = network.read([lit(60, 100 + seed, prompt) for seed, prompt in enumerate(prompts)])
    worth = torch.tensor([1, -1] * 4)  # bright is A in one half of the pairs and B in the other
    a, b = ([(one, two)[way if turn > 0 else 1 - way] for one, two, turn in zip(bright, dark, worth, strict=True)]
            for way in (0, 1))  # fmt: skip
    adam = torch.optim.Adam(learned(network).values(), lr=3e-3)
    for _ in range(12):
        means = network([*a, *b])[..., 0]
        loss = tie_nll(means[:8] - means[8:], worth[:, None].expand(8, 2), 5.0).mean()
        adam.zero_grad()
        loss.backward()
        adam.step()
    with torch.no_grad():
        means = network([*a, *b])[..., 0]
    right = ((means[:8] - means[8:]).sign() == worth[:, None]).float().mean()
    assert right > 0.9


def test_a_spread_starts_at_one_for_every_clip_and_learns(base):
    network = build(base, spread=True)
    found = network(network.read([clip(0), clip(1)]))
    assert found.shape == (2, 2, 2) and torch.equal(found[..., 1], torch.zeros(2, 2))
    found[0, 0, 1].backward()
    assert network.head.weight.grad is not None and network.head.weight.grad[1].abs().max() > 0
    torch.testing.assert_close(said(build(base), clip(0))[..., 0], said(network, clip(0))[..., 0])


def trained(base: Path, **options) -> VlmNetwork:
    network = build(base, spread=True, template=None, fps=4.0, **options)
    generator = torch.Generator().manual_seed(3)
    with torch.no_grad():
        for value in learned(network).values():
            value.add_(0.05 * torch.randn(value.shape, generator=generator))
    return network


def test_what_is_saved_is_all_that_was_learned_and_loads_to_the_same_numbers(base, tmp_path):
    network = trained(base)
    network.save(tmp_path)
    assert [path.name for path in tmp_path.iterdir()] == [FILE]
    assert load_file(tmp_path / FILE).keys() == learned(network).keys()
    facts = json.loads(json.dumps(network.facts()))
    again = VlmNetwork.load(tmp_path, facts, "cpu")
    assert again.axes == AXES and again.spread and again.facts() == facts
    assert torch.equal(said(again, clip(0), clip(1)), said(network, clip(0), clip(1)))


def test_a_frozen_network_saves_the_same(bases, tmp_path):
    network = trained(bases["qwen2_vl"]).eval().requires_grad_(False)
    network.save(tmp_path)
    assert torch.equal(said(VlmNetwork.load(tmp_path, network.facts(), "cpu"), clip(0)), said(network, clip(0)))


def test_bfloat16_is_close(base):
    """8 bits of mantissa through the layers of a random model."""
    exact, rough = said(build(base), clip(0)), said(build(base, dtype="bfloat16"), clip(0))
    assert rough.dtype == torch.float32 and not torch.equal(rough, exact)
    torch.testing.assert_close(rough, exact, atol=0.05, rtol=0.05)


def test_another_template_is_read_instead(bases):
    base = bases["qwen3_vl"]
    template = "Say {prompt}. <|TA_reward|> and <|VQ_reward|>"
    network = build(base, template=template)
    (seen,) = network.read([clip(0)])
    assert network.tokenizer.decode(seen["ids"]).endswith(
        "Say a red fox. <|TA_reward|> and <|VQ_reward|><|im_end|>\n<|im_start|>assistant\n"
    )
    assert not torch.allclose(said(network, clip(0)), said(build(base), clip(0)))


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"axes": ("visual", "taste")}, r"the axes are \['visual', 'taste'\]; give one or more of visual, motion"),
        ({"axes": ()}, "give one or more"),
        ({"axes": ("text", "text")}, "each once"),
        ({"template": "<|VQ_reward|> {prompt}"}, r"holds <\|TA_reward\|> 0 times"),
        ({"template": "<|VQ_reward|> <|TA_reward|>"}, r"holds \{prompt\} 0 times"),
    ],
)
def test_axes_and_templates_that_do_not_fit_are_refused(bases, options, message):
    with pytest.raises(ReelignError, match=message):
        build(bases["qwen2_vl"], **options)


@pytest.mark.parametrize("word", ["<|im_end|>", "<|video_pad|>", "<|TA_reward|>"])
def test_a_prompt_with_the_models_own_words_is_refused(network, word):
    with pytest.raises(RewardError, match=r"no score for clip1: the prompt holds one of the model's own words"):
        network.read([clip(0), clip(1, f"a fox {word}")])


def test_a_single_frame_is_refused(network):
    with pytest.raises(RewardError, match=r"no score for clip1: a single frame is no video"):
        network.read([clip(0), clip(1, frames=1)])


def at(base: Path, facts: dict) -> dict:
    """The facts of a card after someone wrote another base into it."""
    return facts | {"config": facts["config"] | {"base": str(base)}}


def test_another_base_than_the_one_that_was_fitted_is_refused(bases, tmp_path):
    network = trained(bases["qwen2_vl"])
    network.save(tmp_path)
    other = Path(shutil.copytree(bases["qwen2_vl"], tmp_path / "other"))
    shard = next(path for path in sorted(other.glob("model-*")) if any("mlp" in name for name in load_file(path)))
    save_file({name: value * 1.01 for name, value in load_file(shard).items()}, shard, metadata={"format": "pt"})
    with pytest.raises(ReelignError, match=r"was not fitted on the weights in .*other"):
        VlmNetwork.load(tmp_path, at(other, network.facts()), "cpu")


def test_a_base_that_moved_is_found_under_its_new_name(bases, tmp_path):
    network = trained(bases["qwen2_vl"])
    network.save(tmp_path)
    moved = Path(shutil.copytree(bases["qwen2_vl"], tmp_path / "moved"))
    again = VlmNetwork.load(tmp_path, at(moved, network.facts()), "cpu")
    assert torch.equal(said(again, clip(0)), said(network, clip(0)))


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (lambda path: path.unlink(), r"cannot read .*network\.safetensors"),
        (lambda path: path.write_bytes(b"no weights"), r"cannot read .*network\.safetensors"),
        (lambda path: save_file(dict(list(load_file(path).items())[1:]), path), "does not fit its card"),
        (lambda path: save_file(load_file(path) | {"more": torch.ones(1)}, path), "see more"),
        (lambda path: save_file(load_file(path) | {"head.weight": torch.ones(2, 5)}, path), r"see head\.weight"),
    ],
)
def test_a_file_that_does_not_fit_is_named(bases, tmp_path, change, message):
    network = trained(bases["qwen2_vl"])
    network.save(tmp_path)
    change(tmp_path / FILE)
    with pytest.raises(ReelignError, match=message):
        VlmNetwork.load(tmp_path, network.facts(), "cpu")


@pytest.mark.parametrize("change", [{"config": {"kind": "vlm"}}, {"config": None}, {"axes": 1}, {}])
def test_a_card_of_something_else_is_refused(bases, tmp_path, change):
    facts = build(bases["qwen2_vl"]).facts()
    facts = facts | change if change else {name: facts[name] for name in ("config", "axes")}
    with pytest.raises(ReelignError, match="does not describe a network 'vlm'"):
        VlmNetwork.load(tmp_path, facts, "cpu")


def test_a_recipe_names_what_it_changes_and_no_more(bases):
    config = VlmNetworkConfig(kind="vlm", base=bases["qwen2_vl"], lora={"rank": 8}, dtype="float32")  # type: ignore
    network = config.build(AXES, "the model that made the clips", 0, torch.device("cpu"))
    assert len(network.coverage.modules) == 7 and config.lora.alpha == 128
    assert VlmNetworkConfig.model_validate_json(config.model_dump_json()) == config
    with pytest.raises(ValueError, match="least_pixels 300 is above most_pixels 200"):
        VlmNetworkConfig(kind="vlm", base=bases["qwen2_vl"], least_pixels=300, most_pixels=200)

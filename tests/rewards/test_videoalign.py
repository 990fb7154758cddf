import hashlib
import json
import shutil
from pathlib import Path

import numpy as np
import pytest
import torch
from peft import LoraConfig, get_peft_model
from torch import nn
from transformers import AutoTokenizer, Qwen2VLConfig, Qwen2VLModel

from reelign.data.clip import Clip
from reelign.errors import ReelignError
from reelign.rewards.base import RewardError
from reelign.rewards.qwen2vl import resized
from reelign.rewards.videoalign import AXES, TEMPLATE, VideoAlign, seen
from tiny_qwen import no_network, old_name, tiny_base

assert no_network  # a fixture that every test here uses

TOKENS = ["<|VQ_reward|>", "<|MQ_reward|>", "<|TA_reward|>"]
SETTINGS = {
    "data_config": {
        "fps": 2.0,
        "num_frames": None,
        "max_frame_pixels": 448 * 448,
        "sample_type": "uniform",
        "prompt_template_type": "detailed_special",
        "eval_dim": ["VQ", "MQ", "TA"],
    },
    "model_config": {"output_dim": 1, "use_special_tokens": True, "reward_token": "special"},
    "peft_lora_config": {"lora_enable": True, "lora_r": 4, "lora_alpha": 8, "use_rslora": False},
    "inference_config": {
        "VQ_mean": 3.6757,
        "VQ_std": 2.2476,
        "MQ_mean": 1.1646,
        "MQ_std": 1.3811,
        "TA_mean": 2.8105,
        "TA_std": 2.5121,
    },
}


class Released(nn.Module):
    """Today's Qwen2VLModel with the head beside it: what PEFT wraps."""

    def __init__(self, config: Qwen2VLConfig) -> None:
        super().__init__()
        self.model, self.rm_head = Qwen2VLModel(config), nn.Linear(32, 1, bias=False)


def wrapped(base: Path, rslora: bool = False) -> nn.Module:
    """A random model with a live LoRA on the linear layers of its text part, as VideoAlign trains it."""
    config = Qwen2VLConfig.from_pretrained(base)
    config.text_config.vocab_size = len(AutoTokenizer.from_pretrained(base)) + 3
    torch.manual_seed(0)
    model = Released(config)
    for value in model.parameters():
        value.data.mul_(3)
    lora = LoraConfig(r=4, lora_alpha=8, use_rslora=rslora, target_modules=r".*language_model.*_proj")
    model = get_peft_model(model, lora)
    for name, value in model.named_parameters():
        if "lora_B" in name:
            nn.init.normal_(value, std=0.1)
    return model.eval()


def write(folder: Path, model: nn.Module, settings: dict = SETTINGS) -> Path:
    """The released layout; the names are those of transformers 4.45 under PEFT."""
    (folder / "checkpoint-11352").mkdir(parents=True)
    (folder / "model_config.json").write_text(json.dumps(settings))
    weights = {}
    for name, value in model.state_dict().items():
        inner = name.removeprefix("base_model.model.")
        inner = inner if inner.startswith("rm_head") else old_name(inner.removeprefix("model."))
        weights[f"base_model.model.{inner}"] = value
    embedding = weights["base_model.model.model.embed_tokens.weight"]
    torch.save(weights | {"base_model.model.lm_head.weight": embedding}, folder / "checkpoint-11352" / "model.pth")
    return folder


@pytest.fixture(scope="module")
def files(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, Path]:
    base = tiny_base(tmp_path_factory.mktemp("base"))
    return write(tmp_path_factory.mktemp("videoreward"), wrapped(base)), base


def load(files: tuple[Path, Path], **options) -> VideoAlign:
    return VideoAlign(*files, dtype="float32", device="cpu", **options)


@pytest.fixture(scope="module")
def reward(files: tuple[Path, Path]) -> VideoAlign:
    return load(files)


def clip(seed: int, prompt: str = "a red fox", frames: int = 16, fps: float = 8.0, size: int = 56) -> Clip:
    noise = np.random.default_rng(seed).integers(0, 256, (frames, size // 4, size // 4, 3), np.uint8)
    return Clip(noise.repeat(4, 1).repeat(4, 2), fps, prompt, f"clip{seed}")


def table(reward: VideoAlign, *clips: Clip) -> np.ndarray:
    found = reward(clips)
    return np.stack([found[axis] for axis in AXES], 1)


def test_three_numbers_a_clip_that_follow_frames_and_prompt(reward):
    found = table(reward, clip(0), clip(1), clip(0, "two blue boats on a lake"))
    assert found.shape == (3, 3)
    assert (found.std(0) > 1e-4).any() and len({tuple(row) for row in found.round(4)}) == 3
    assert len(set(found[0].round(4))) == 3


@pytest.mark.parametrize(
    ("frames", "fps", "indices"),
    [
        (16, 8.0, [0, 5, 10, 15]),  # 2 seconds: 4 frames
        (16, 4.0, [0, 2, 4, 6, 9, 11, 13, 15]),  # told 4 fps, the same clip lasts 4 seconds: 8 frames
        (16, 100.0, [0, 5, 10, 15]),  # never fewer than 4
        (81, 16.0, [0, 9, 18, 27, 36, 44, 53, 62, 71, 80]),  # 10.1 frames: an even number
        (7, 0.5, [0, 1, 2, 4, 5, 6]),  # never more than the clip has, and even
        (3, 8.0, [0, 2]),
    ],
)
def test_two_frames_a_second_of_the_clips_own_rate_are_seen(frames, fps, indices):
    assert seen(frames, fps, 2.0).tolist() == indices


def test_a_wrong_frame_rate_is_another_input(reward):
    right = clip(2, fps=8.0)
    wrong = Clip(right.frames, 4.0, right.prompt, right.id)
    assert np.abs(table(reward, right) - table(reward, wrong)).max() > 1e-3
    thinned = Clip(right.frames[[0, 5, 10, 15]], 2.0, right.prompt, right.id)
    np.testing.assert_allclose(table(reward, right), table(reward, thinned), atol=1e-5)


def test_large_frames_are_looked_at_as_448_x_448_pixels(reward):
    large = clip(6, frames=2, size=896)
    small = resized(large.frames, 1, 448 * 448).byte().permute(0, 2, 3, 1).numpy()
    assert small.shape == (2, 448, 448, 3)
    np.testing.assert_allclose(table(reward, large), table(reward, Clip(small, 8.0, large.prompt, "s")), atol=1e-5)


def test_a_batch_scores_as_one_by_one(reward):
    """Prompts and clips of several lengths, so that most rows are padded; 1e-4 is float32 in another order."""
    clips = [clip(0, "fox"), clip(1, "a very long story " * 30, 24), clip(2, "", 6, size=84), clip(3), clip(4, fps=4.0)]
    alone = np.concatenate([table(reward, one) for one in clips])
    np.testing.assert_allclose(table(reward, *clips), alone, atol=1e-4)


def test_the_same_clips_give_the_same_numbers_and_no_random_number_is_drawn(files, reward):
    state = torch.get_rng_state()
    assert np.array_equal(table(load(files), clip(0), clip(1)), table(reward, clip(0), clip(1)))
    assert torch.equal(torch.get_rng_state(), state)


def test_bfloat16_is_close(files, reward):
    """8 bits of mantissa through two layers of a random model."""
    found = table(VideoAlign(*files, device="cpu"), clip(0))
    assert not np.array_equal(found, table(reward, clip(0)))
    np.testing.assert_allclose(found, table(reward, clip(0)), rtol=0.03)


def test_normalised_scores_are_deviations_from_the_files_mean(files, reward):
    raw = table(load(files, normalised=False), clip(0))
    expected = (raw - [[3.6757, 1.1646, 2.8105]]) / [[2.2476, 1.3811, 2.5121]]
    np.testing.assert_allclose(table(reward, clip(0)), expected, rtol=1e-12)


@pytest.mark.parametrize("rslora", [False, True])
def test_the_score_is_what_a_live_adapter_gives(files, tmp_path, rslora):
    """PEFT's adapter and transformers' model fed by hand: patches in time, text, positions, tokens, head, scale."""
    base, model = files[1], wrapped(files[1], rslora)
    settings = SETTINGS | {"peft_lora_config": {"lora_alpha": 8, "use_rslora": rslora}}
    shown = clip(5, frames=4, fps=2.0, size=448)
    tokenizer = AutoTokenizer.from_pretrained(base)
    tokenizer.add_special_tokens({"additional_special_tokens": TOKENS})
    text = (
        "<|im_start|>system\nYou are a helpful assistant.<|im_end|>\n<|im_start|>user\n<|vision_start|>"
        + "<|video_pad|>" * 512
        + f"<|vision_end|>{TEMPLATE.format(text_prompt=shown.prompt)}<|im_end|>\n<|im_start|>assistant\n"
    )
    ids = tokenizer(text, return_tensors="pt").input_ids
    mean, std = np.array([0.48145466, 0.4578275, 0.40821073]), np.array([0.26862954, 0.26130258, 0.27577711])
    pixels = (shown.frames / 255 - mean) / std
    rows = [
        pixels[t : t + 2, y : y + 14, x : x + 14].transpose(3, 0, 1, 2).ravel()
        for t in (0, 2)
        for top in range(0, 448, 28)
        for left in range(0, 448, 28)
        for y in (top, top + 14)
        for x in (left, left + 14)
    ]
    inner = model.get_submodule("base_model.model")
    with torch.no_grad():
        hidden = inner.model(
            ids,
            position_ids=torch.arange(ids.shape[1]).view(1, 1, -1).expand(3, 1, -1),
            pixel_values_videos=torch.tensor(np.stack(rows), dtype=torch.float32),
            video_grid_thw=torch.tensor([[2, 32, 32]]),
        ).last_hidden_state[0]
        places = [ids[0].tolist().index(tokenizer.convert_tokens_to_ids(token)) for token in TOKENS]
        expected = inner.rm_head(hidden[places])[:, 0]
    found = table(load((write(tmp_path / "v", model, settings), base), normalised=False), shown)[0]
    np.testing.assert_allclose(found, expected.numpy(), atol=1e-4)


def test_the_prompt_is_the_one_of_the_training():
    """The digest is that of the public text; one blank more is another model input."""
    assert hashlib.sha256(TEMPLATE.encode()).hexdigest().startswith("fdb6309bac618dd0")


def changed(files: tuple[Path, Path], tmp_path: Path, change) -> tuple[Path, Path]:
    folder = Path(shutil.copytree(files[0], tmp_path / "changed"))
    path = folder / "checkpoint-11352" / "model.pth"
    weights = torch.load(path, weights_only=True)
    change(weights)
    torch.save(weights, path)
    return folder, files[1]


LAYER = "base_model.model.model.layers.1.self_attn"


@pytest.mark.parametrize(
    "name",
    [
        "base_model.model.visual.merger.mlp.2.bias",
        f"{LAYER}.v_proj.base_layer.weight",
        f"{LAYER}.v_proj.lora_A.default.weight",
        f"{LAYER}.o_proj.lora_B.default.weight",
        "base_model.model.rm_head.weight",
    ],
)
def test_every_part_comes_from_the_file(files, reward, tmp_path, name):
    other = load(changed(files, tmp_path, lambda weights: weights[name].view(-1)[::2].add_(1.0)))
    assert np.abs(table(other, clip(0)) - table(reward, clip(0))).max() > 1e-3


def test_of_several_checkpoints_the_last_is_taken(files, reward, tmp_path):
    folder = Path(shutil.copytree(files[0], tmp_path / "v"))
    shutil.copytree(folder / "checkpoint-11352", folder / "checkpoint-9000")
    (folder / "checkpoint-9000" / "model.pth").write_bytes(b"older")
    assert np.array_equal(table(load((folder, files[1])), clip(0)), table(reward, clip(0)))


@pytest.mark.parametrize(
    ("change", "said"),
    [
        (lambda weights: weights.pop("base_model.model.rm_head.weight"), r"lack rm_head\.weight"),
        (lambda weights: weights.pop(f"{LAYER}.v_proj.lora_B.default.weight"), "lora_A.*without its partners"),
        (lambda weights: weights.pop(f"{LAYER}.v_proj.base_layer.weight"), "lora_A.*without its partners"),
        (lambda weights: weights.update({"base_model.model.rm_head.weight": torch.ones(3, 32)}), r"\(3, 32\)"),
        (lambda weights: weights.update(more=torch.ones(1)), "hold the unknown .*more"),
    ],
)
def test_weights_that_do_not_fit_are_named(files, tmp_path, change, said):
    with pytest.raises(ReelignError, match=said):
        load(changed(files, tmp_path, change))


def test_code_in_a_weights_file_is_refused_and_not_run(files, tmp_path):
    with pytest.raises(ReelignError, match=r"model\.pth is damaged or no weights file"):
        load(changed(files, tmp_path, lambda weights: weights.update(code=Trap(tmp_path / "ran"))))
    assert not (tmp_path / "ran").exists()


class Trap:
    """Touches a file when it is unpickled."""

    def __init__(self, path: Path) -> None:
        self.path = path

    def __reduce__(self):
        return Path.touch, (self.path,)


@pytest.mark.parametrize(
    ("file", "content", "said"),
    [
        ("checkpoint-11352/model.pth", None, r"there is no .*model\.pth.*full model"),
        ("checkpoint-11352/model.pth", b"", r"model\.pth is damaged"),
        ("checkpoint-11352/model.pth", b"no weights", r"model\.pth is damaged"),
        ("model_config.json", None, r"cannot read .*model_config\.json"),
        ("model_config.json", b"{", r"cannot read .*model_config\.json"),
        ("model_config.json", b"{}", r"does not say data_config\.num_frames"),
    ],
)
def test_a_missing_or_damaged_file_is_named(files, tmp_path, file, content, said):
    folder = Path(shutil.copytree(files[0], tmp_path / "v"))
    (folder / file).unlink() if content is None else (folder / file).write_bytes(content)
    with pytest.raises(ReelignError, match=said):
        load((folder, files[1]))


def test_a_folder_without_a_checkpoint_says_what_to_give(tmp_path, files):
    (tmp_path / "model_config.json").write_text(json.dumps(SETTINGS))
    with pytest.raises(ReelignError, match="KwaiVGI/VideoReward"):
        load((tmp_path, files[1]))


def test_a_model_trained_otherwise_is_refused(files, tmp_path):
    folder = Path(shutil.copytree(files[0], tmp_path / "v"))
    other = SETTINGS | {"data_config": SETTINGS["data_config"] | {"sample_type": "multi_pts"}}
    (folder / "model_config.json").write_text(json.dumps(other))
    with pytest.raises(ReelignError, match=r"data_config\.sample_type = 'multi_pts'; only 'uniform'"):
        load((folder, files[1]))


def test_what_cannot_be_scored_is_named(reward):
    with pytest.raises(RewardError, match="single frame") as caught:
        reward([clip(0), clip(1, frames=1)])
    assert caught.value.clips == ("clip1",)
    with pytest.raises(RewardError, match="own words") as caught:
        reward([clip(2, "rate it <|MQ_reward|>"), clip(3)])
    assert caught.value.clips == ("clip2",)


def test_a_batch_of_none_is_refused(files):
    with pytest.raises(ReelignError, match="batch is 0"):
        load(files, batch=0)

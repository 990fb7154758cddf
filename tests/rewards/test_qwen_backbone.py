"""The backbones of a reward that is fitted from votes, against transformers' own models and processors."""

import json
import shutil
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
import torch
from safetensors.torch import load_file, save_file
from torch import Tensor
from transformers import AutoTokenizer, Qwen3VLProcessor
from transformers.models.qwen2_vl.image_processing_pil_qwen2_vl import Qwen2VLImageProcessorPil
from transformers.video_utils import VideoMetadata

from reelign.data.clip import Clip
from reelign.errors import ReelignError
from reelign.rewards.vlm_network import VlmLora, VlmNetwork, VlmNetworkConfig
from reelign.rewards.vlm_template import TOKENS, default_template
from tiny_qwen import WHOLE, no_network, tiny_whole

assert no_network  # a fixture that every test here uses

AXES = ("visual", "text")


@pytest.fixture(scope="module")
def bases(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    return {kind: tiny_whole(tmp_path_factory.mktemp(kind), kind) for kind in WHOLE}


def build(base: Path) -> VlmNetwork:
    small = VlmLora(rank=4, alpha=8, targets=["q_proj"])
    return VlmNetwork(
        VlmNetworkConfig(kind="vlm", base=base, lora=small, dtype="float32", least_pixels=1), AXES, device="cpu"
    )


SHOWN = [0, 3, 6, 8, 11, 14]
"""What 2 frames a second are of 15 frames at 5.25 a second."""


def noise(size: int) -> Clip:
    small = np.random.default_rng(5).integers(0, 256, (15, size // 4, size // 4, 3), np.uint8)
    return Clip(small.repeat(4, 1).repeat(4, 2), 5.25, "a red fox runs", "noise")


def patches(clip: Clip, side: int, statistics: dict[str, tuple[float, ...]]) -> Tensor:
    """By transformers' processor of images, for which an image is two equal frames: each frame gives its half."""
    process = Qwen2VLImageProcessorPil(patch_size=side, do_resize=False, **statistics)
    pairs = []
    for pair in zip(SHOWN[::2], SHOWN[1::2], strict=True):
        one, two = (
            process(clip.frames[at], input_data_format="channels_last", return_tensors="pt").pixel_values for at in pair
        )
        one, two = (half.view(-1, 3, 2, side * side) for half in (one, two))
        pairs.append(torch.stack([one[:, :, 0], two[:, :, 1]], 2).flatten(1))
    return torch.cat(pairs)


def timed_placeholders(clip: Clip, grid: Tensor) -> str:
    """By the methods of transformers' Qwen3-VL processor, which itself cannot be made without torchvision."""
    words = {f"vision_{end}_token": f"<|vision_{end}|>" for end in ("start", "end")} | {"video_token": "<|video_pad|>"}
    own = SimpleNamespace(video_processor=SimpleNamespace(merge_size=2, temporal_patch_size=2), **words)
    own._calculate_timestamps = lambda *args: Qwen3VLProcessor._calculate_timestamps(own, *args)
    told = VideoMetadata(total_num_frames=len(clip.frames), fps=clip.fps, frames_indices=list(SHOWN))
    return Qwen3VLProcessor.replace_video_token(own, {"video_grid_thw": grid, "video_metadata": [told]}, 0)


def words(base: Path, picture: str, system: str, prompt: str) -> tuple[Tensor, list[int]]:
    """Ids of what is read, and those of the new words."""
    tokenizer = AutoTokenizer.from_pretrained(base)
    tokens = [TOKENS[axis] for axis in AXES]
    tokenizer.add_tokens(tokens, special_tokens=True)
    text = default_template(AXES).replace("{prompt}", prompt)
    whole = f"{system}<|im_start|>user\n{picture}{text}<|im_end|>\n<|im_start|>assistant\n"
    return tokenizer(whole, return_tensors="pt").input_ids, tokenizer.convert_tokens_to_ids(tokens)


def merged(base: Path, kind: str, network: VlmNetwork, new: list[int]) -> Any:
    """transformers' model with the new words in its table and B A alpha / rank in its weights."""
    model = WHOLE[kind][1].from_pretrained(base, dtype=torch.float32).model.eval().requires_grad_(False)
    learned = {name.removeprefix("_backbone."): value for name, value in network.named_parameters()}
    model.language_model.embed_tokens.weight[new] = learned["language_model.embed_tokens.new"]
    for name, down in learned.items():
        if ".lora_A." in name:
            up = learned[name.replace(".lora_A.", ".lora_B.")]
            model.get_parameter(name.split(".lora_A.")[0] + ".weight").add_(up @ down, alpha=8 / 4)
    return model


@pytest.mark.parametrize("kind", WHOLE)
@torch.no_grad()
def test_the_score_is_what_transformers_own_model_gives(bases, kind):
    """Its patches, its placeholders with their times, its positions, its hidden states where the new words stand."""
    network, three = build(bases[kind]), kind == "qwen3_vl"
    for name, value in network.named_parameters():
        if "lora_B" in name:
            torch.nn.init.normal_(value, std=0.1, generator=torch.Generator().manual_seed(1))
    side, clip = (16, noise(96)) if three else (14, noise(112))
    statistics = {"image_mean": (0.5,) * 3, "image_std": (0.5,) * 3} if three else {}
    grid = torch.tensor([[len(SHOWN) // 2, *(size // side for size in clip.frames.shape[1:3])]])
    plain = f"<|vision_start|>{'<|video_pad|>' * (int(grid.prod()) // 4)}<|vision_end|>"
    system = "" if three else "<|im_start|>system\nYou are a helpful assistant.<|im_end|>\n"
    ids, new = words(bases[kind], timed_placeholders(clip, grid) if three else plain, system, clip.prompt)
    model = merged(bases[kind], kind, network, new)
    is_video = (ids == model.config.video_token_id).int()
    seconds = torch.tensor([2 * len(clip.frames) / clip.fps / len(SHOWN)])
    timing = {"second_per_grid_ts": seconds} if kind == "qwen2_5_vl" else {}
    positions, _ = model.get_rope_index(ids, mm_token_type_ids=2 * is_video, video_grid_thw=grid.clone(), **timing)
    seen = {"pixel_values_videos": patches(clip, side, statistics), "video_grid_thw": grid}
    hidden = model(input_ids=ids, position_ids=positions, **seen).last_hidden_state[0]
    expected = network.head(hidden[[ids[0].tolist().index(word) for word in new]])
    torch.testing.assert_close(network(network.read([clip]))[0], expected, atol=1e-5, rtol=1e-4)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (shutil.rmtree, r"cannot read .*config\.json"),
        (lambda folder: (folder / "config.json").write_text("{"), r"cannot read .*config\.json"),
        (
            lambda folder: (folder / "config.json").write_text('{"model_type": "llava"}'),
            "describes a 'llava'.*qwen3_vl",
        ),
        (lambda folder: (folder / "tokenizer.json").unlink(), r"tokenizer of .* does not know <\|vision_start\|>"),
        (lambda folder: next(folder.glob("model-00002*")).unlink(), "cannot load the model in"),
        (lambda folder: next(folder.glob("model-00002*")).write_bytes(b"no weights"), "cannot load the model in"),
        (lambda folder: [path.unlink() for path in folder.glob("model*")], "cannot load the model in"),
        (lambda folder: without(folder, "visual.merger"), r"the weights in .* lack visual\.merger"),
    ],
)
def test_a_base_that_is_none_is_told_by_its_file(bases, tmp_path, change, message):
    folder = Path(shutil.copytree(bases["qwen3_vl"], tmp_path / "base"))
    change(folder)
    with pytest.raises(ReelignError, match=message):
        build(folder)


def without(folder: Path, part: str) -> None:
    """Rewrite the shards, and their index, without the weights of a part."""
    path = folder / "model.safetensors.index.json"
    index = json.loads(path.read_text())
    for shard in set(index["weight_map"].values()):
        kept = {name: value for name, value in load_file(folder / shard).items() if part not in name}
        save_file(kept, folder / shard, metadata={"format": "pt"})
    index["weight_map"] = {name: shard for name, shard in index["weight_map"].items() if part not in name}
    path.write_text(json.dumps(index))

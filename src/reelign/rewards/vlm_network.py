"""A vision-language model that is fitted to votes, as VideoReward was (arXiv 2501.13918, section 3.2).

A Qwen-VL looks at a clip and reads what it is to judge. The text holds one new word for each axis, and one linear
layer turns the last hidden state at that word into the axis's score. What learns: low-rank adapters on the language
model, the embeddings of the new words, the linear layer, and, where asked, the vision tower. The rest is the base as it
is on disk.

- Positions are those that the backbone was trained with (three axes, see `qwen_backbone.py`). The released VideoReward
  counts 0, 1, 2, ... through the video, because its code passes none; its port keeps that, since its weights grew up
  with it. What is fitted here starts from the backbone, which would only have to unlearn its own.
- With `spread` the layer has a second output, the logarithm of the score's deviation, as HPSv3 has (arXiv 2508.03789);
  it starts at 0, the same for every clip.
"""

from __future__ import annotations

import difflib
import math
from collections.abc import Sequence
from pathlib import Path
from typing import Any, Literal, Self

import torch
import torch.nn.functional as F
from peft import LoraConfig, inject_adapter_in_model
from pydantic import BaseModel, ConfigDict, Field, model_validator
from safetensors import SafetensorError
from safetensors.torch import load_file, save_file
from torch import Tensor, nn
from torch.nn.utils.rnn import pad_sequence

from reelign.data.clip import Clip
from reelign.errors import ReelignError
from reelign.models.adapter import Coverage, LoraSettings
from reelign.rewards.base import Needs, RewardError
from reelign.rewards.preference import PreferenceNetwork
from reelign.rewards.qwen2vl import patchify, resized, tokenizer_of
from reelign.rewards.qwen_backbone import family_of, fingerprint, load_backbone
from reelign.rewards.videoalign import seen as frames_seen
from reelign.rewards.vlm_template import TOKENS, checked_template, default_template

FILE = "network.safetensors"


class VlmLora(LoraSettings):
    """Low-rank adapters of a language model; by default VideoReward's, on every linear layer."""

    rank: int = Field(default=64, ge=1, description="Rank of the adapters.")
    alpha: int = Field(default=128, ge=1, description="Scale: the update is multiplied by alpha / rank.")
    targets: list[str] = Field(
        default=["q_proj", "k_proj", "v_proj", "o_proj", "gate_proj", "up_proj", "down_proj"],
        min_length=1,
        description="Endings of the names of the language model's layers that get an adapter.",
    )


class VlmNetworkConfig(BaseModel):
    """A Qwen2-VL, Qwen2.5-VL or Qwen3-VL that is fitted with adapters."""

    model_config = ConfigDict(extra="forbid")
    kind: Literal["vlm"]
    base: Path = Field(description="Local folder of the model: config.json, tokenizer and *.safetensors.")
    spread: bool = Field(default=False, description="Whether it also says how sure it is.")
    lora: VlmLora = Field(default_factory=VlmLora, description="Adapters of the language model.")
    train_vision: bool = Field(default=False, description="Train all of the vision tower too, as VideoReward did.")
    fps: float = Field(default=2.0, gt=0, description="Frames looked at in a second of the clip's time; at least 4.")
    least_pixels: int = Field(default=128 * 28 * 28, ge=1, description="Smaller frames are enlarged to this.")
    most_pixels: int = Field(default=448 * 448, ge=1, description="Larger frames are shrunk to this.")
    template: str | None = Field(
        default=None,
        description="What it reads after the video: {prompt} once, and the word of each axis once (<|VQ_reward|>, "
        "<|MQ_reward|>, <|TA_reward|>, <|overall_reward|>); our own words if empty.",
    )
    gradient_checkpointing: bool = Field(default=False, description="Trade a third more compute for memory.")
    dtype: Literal["float32", "bfloat16"] = Field(
        default="bfloat16", description="Of the base; adapters, new words and head are float32."
    )

    @model_validator(mode="after")
    def _makes_sense(self) -> Self:
        if self.least_pixels > self.most_pixels:
            raise ValueError(f"least_pixels {self.least_pixels} is above most_pixels {self.most_pixels}")
        return self

    def build(self, axes: Sequence[str], parent: str, seed: int, device: torch.device) -> VlmNetwork:
        """The network before it is fitted; the model that made the clips (`parent`) has no part in it.

        Raises:
            ReelignError: see `VlmNetwork`.
        """
        return VlmNetwork(self, axes, seed, device)


class VlmNetwork(PreferenceNetwork):
    """A Qwen2-VL, Qwen2.5-VL or Qwen3-VL with a word and a score for each axis.

    Attributes:
        config: its settings.
        coverage: which layers carry an adapter.
    """

    kind = "vlm"
    needs = Needs()

    def __init__(
        self,
        config: VlmNetworkConfig,
        axes: Sequence[str],
        seed: int = 0,
        device: torch.device | str | None = None,
    ) -> None:
        """Load the base and add what learns.

        Args:
            config: settings.
            axes: what is judged, of visual, motion, text and overall.
            seed: of the adapters, the new words and the head.
            device: where to compute; by default the CUDA device when there is one.

        Raises:
            ReelignError: a file is missing, damaged or of another model; a target of the adapters matches no layer; an
                axis is unknown; the template lacks something.
        """
        super().__init__()
        self.config, self.axes, self.spread = config, tuple(axes), config.spread
        usual = default_template(self.axes)
        self.template = usual if config.template is None else checked_template(config.template, self.axes)
        self._family, self.tokenizer = family_of(config.base), tokenizer_of(config.base)
        self._backbone: Any = load_backbone(config.base, config.dtype).requires_grad_(False)
        self._fingerprint = fingerprint(self._backbone)
        with torch.random.fork_rng(devices=[]):  # peft and torch draw first weights of their own
            self._grow(torch.Generator().manual_seed(seed))
        self._backbone.visual.requires_grad_(config.train_vision)
        if config.gradient_checkpointing:
            self._backbone.activation_checkpointing_enable({"use_reentrant": False})
        self._no_split_modules = list(type(self._backbone)._no_split_modules)
        self._learned = [name for name, value in self.named_parameters() if value.requires_grad]
        self.to(torch.device(device or ("cuda" if torch.cuda.is_available() else "cpu")))

    def _grow(self, generator: torch.Generator) -> None:
        """Add the new words, the adapters and the head."""
        words, config = [TOKENS[axis] for axis in self.axes], self._backbone.config
        self.tokenizer.add_tokens(words, special_tokens=True)
        ids = self.tokenizer.convert_tokens_to_ids(words)
        self.coverage = _adapt(self._backbone, self.config.lora, generator)
        language = self._backbone.language_model
        language.embed_tokens = _Words(language.embed_tokens, ids, config.video_token_id, generator)
        self.head = _head(config.text_config.hidden_size, self.spread, generator)

    def read(self, clips: Sequence[Clip]) -> list[dict[str, Tensor]]:
        """Of each clip the frames that are looked at, uint8 (T, 3, h, w), the text as ids (L,), and the seconds from
        one pair of frames to the next.

        Raises:
            RewardError: a clip has a single frame, or a prompt holds one of the model's own words.
        """
        if short := [clip.id for clip in clips if len(clip.frames) < 2]:
            raise RewardError(self.kind, short, "a single frame is no video; give 2 frames or more.")
        words = self.tokenizer.get_added_vocab()
        if bad := [clip.id for clip in clips if any(word in clip.prompt for word in words)]:
            raise RewardError(self.kind, bad, "the prompt holds one of the model's own words (<|...|>); take it out.")
        return [self._read(clip) for clip in clips]

    def _read(self, clip: Clip) -> dict[str, Tensor]:
        vision = self._backbone.config.vision_config
        side, together = vision.patch_size, vision.temporal_patch_size
        chosen = frames_seen(len(clip.frames), clip.fps, self.config.fps)
        pixels = resized(
            clip.frames[chosen], self.config.least_pixels, self.config.most_pixels, side * vision.spatial_merge_size
        ).byte()
        grid = (math.ceil(len(pixels) / together), pixels.shape[2] // side, pixels.shape[3] // side)
        text = self._family.conversation(self.template.replace("{prompt}", clip.prompt), chosen, clip.fps, grid, vision)
        return {
            "pixels": pixels,
            "ids": torch.tensor(self.tokenizer(text).input_ids),
            "seconds": torch.tensor(together * len(clip.frames) / clip.fps / len(chosen)),
        }

    def judge(self, features: Tensor) -> Tensor:
        """Float32 (B, axes, 1) means, or (B, axes, 2) means and log deviations."""
        # Sharded, the head's weights come in the base's type (the product is float32 all the same), and FSDP asks for
        # an output that is no view.
        bias = None if self.head.bias is None else self.head.bias.float()
        return F.linear(features, self.head.weight.float(), bias).clone()

    def head_weights(self) -> Tensor:
        """The same for every axis, (axes, width): their tokens differ, and not their head."""
        return self.head.weight[:1].float().expand(len(self.axes), -1)

    def features(self, seen: Sequence[dict[str, Tensor]]) -> Tensor:
        """The last hidden state at the token of each axis, float32 (B, axes, width)."""
        family, config = self._family, self._backbone.config
        device = self.head.weight.device
        patches, grids = zip(
            *(
                patchify(one["pixels"].to(device).float(), config.vision_config, family.mean, family.std)
                for one in seen
            ),
            strict=True,
        )
        ids = pad_sequence([one["ids"] for one in seen], batch_first=True)
        lengths = torch.tensor([len(one["ids"]) for one in seen])
        there = torch.arange(ids.shape[1]) < lengths[:, None]
        ids, there = ids.to(device), there.to(device)
        timing = {"second_per_grid_ts": torch.stack([one["seconds"] for one in seen]).to(device)}
        hidden = self._backbone(
            input_ids=ids,
            attention_mask=there.long(),
            mm_token_type_ids=2 * (ids == config.video_token_id).int(),
            pixel_values_videos=torch.cat(patches),
            video_grid_thw=torch.tensor(grids, device=device),
            use_cache=False,
            **(timing if family.real_time else {}),
        ).last_hidden_state
        places = (ids[:, None] == self._backbone.language_model.embed_tokens.ids[:, None]).int().argmax(2)
        return hidden.gather(1, places[..., None].expand(-1, -1, hidden.shape[2])).float()

    def save(self, folder: Path) -> None:
        """Write all that learns, and nothing of the base, into one file; the network is whole, not sharded.

        Raises:
            ReelignError: it cannot be written.
        """
        weights = self.state_dict()
        try:
            save_file({name: weights[name].contiguous() for name in self._learned}, folder / FILE)
        except (OSError, SafetensorError) as error:
            raise ReelignError(f"cannot write {folder / FILE}: {error}. Free some space and run again.") from error

    @classmethod
    def load(cls, folder: Path, facts: dict[str, Any], device: torch.device | str) -> VlmNetwork:
        """Read what `save` wrote, around the base that `facts` names.

        Raises:
            ReelignError: a file is missing or does not fit, or the base is not the one that was fitted.
        """
        try:
            config, axes, told = VlmNetworkConfig(**facts["config"]), tuple(facts["axes"]), facts["fingerprint"]
        except (KeyError, TypeError, ValueError) as error:
            raise ReelignError(f"the card of {folder} does not describe a network {cls.kind!r}: {error}.") from error
        network = cls(config, axes, device=device)
        if network._fingerprint != told:
            raise ReelignError(f"the reward {folder} was not fitted on the weights in {config.base}; give it those.")
        network._fill(folder / FILE)
        return network

    def _fill(self, path: Path) -> None:
        try:
            weights = load_file(path)
        except (OSError, SafetensorError) as error:
            raise ReelignError(f"cannot read {path} ({error}). Give the whole artifact of a `reward` stage.") from error
        own = self.state_dict()
        wrong = sorted(
            (weights.keys() ^ set(self._learned))
            | {name for name in weights.keys() & set(self._learned) if weights[name].shape != own[name].shape}
        )
        if wrong:
            raise ReelignError(f"{path} does not fit its card: see {wrong[0]} (and {len(wrong) - 1} more).")
        self.load_state_dict(weights, strict=False)

    def facts(self) -> dict[str, Any]:
        """Settings that `load` needs, as JSON: the words that it reads among them, which may not change with ours, and
        the base by its place and a fingerprint."""
        fixed = {"base": self.config.base.resolve(), "template": self.template}
        config = self.config.model_copy(update=fixed).model_dump(mode="json")
        return {"config": config, "axes": list(self.axes), "fingerprint": self._fingerprint}


class _Words(nn.Module):
    """The embeddings of the base, frozen, and those of the new words, which learn and are float32."""

    ids: Tensor

    def __init__(self, known: nn.Embedding, ids: Sequence[int], ordinary: int, generator: torch.Generator) -> None:
        super().__init__()
        self.known, self.ordinary = known, ordinary
        self.register_buffer("ids", torch.tensor(ids), persistent=False)
        # A new word starts as a plausible one: drawn with the mean and deviations of a sixteenth of those known.
        std, mean = torch.std_mean(known.weight[::16].float(), 0)
        self.new = nn.Parameter(torch.normal(mean.expand(len(ids), -1), std.expand(len(ids), -1), generator=generator))

    def forward(self, ids: Tensor) -> Tensor:
        """(B, L) -> (B, L, width), in the base's type."""
        which = ids[..., None] == self.ids
        is_new = which.any(-1)
        known = self.known(ids.masked_fill(is_new, self.ordinary))
        return torch.where(is_new[..., None], self.new[which.int().argmax(-1)].to(known.dtype), known)


def _adapt(backbone: nn.Module, lora: LoraSettings, generator: torch.Generator) -> Coverage:
    """Give layers of the language model float32 adapters, A drawn from `generator`, B at zero."""
    linear = [
        name
        for name, module in backbone.named_modules()
        if name.startswith("language_model.") and isinstance(module, nn.Linear)
    ]
    found = {target: [name for name in linear if name.endswith(f".{target}")] for target in lora.targets}
    for target, names in found.items():
        if not names:
            endings = sorted({name.rpartition(".")[2] for name in linear})
            near = difflib.get_close_matches(target, endings, n=4, cutoff=0.3) or endings
            raise ReelignError(
                f"lora.targets: {target!r} matches no linear layer of the language model. Near names: "
                f"{', '.join(near)}."
            )
    names = sorted({name for covered in found.values() for name in covered})
    config = LoraConfig(r=lora.rank, lora_alpha=lora.alpha, target_modules=names)
    inject_adapter_in_model(config, backbone)
    adapted = [(name, value) for name, value in backbone.named_parameters() if ".lora_" in name]
    if len(adapted) != 2 * len(names):
        raise ReelignError(f"LoRA: {len(names)} layers were targeted, but {len(adapted) // 2} carry an adapter.")
    for name, value in adapted:
        value.data = value.data.float()
        if ".lora_A." in name:
            nn.init.kaiming_uniform_(value, a=math.sqrt(5), generator=generator)
    return Coverage(found)


def _head(width: int, spread: bool, generator: torch.Generator) -> nn.Linear:
    """Means, and log deviations that start at 0; a bias only with these: that of a mean cancels in every difference."""
    head = nn.Linear(width, 1 + spread, bias=spread)
    nn.init.zeros_(head.weight)
    nn.init.normal_(head.weight[0], std=1 / math.sqrt(width), generator=generator)
    if spread:
        nn.init.zeros_(head.bias)
    return head

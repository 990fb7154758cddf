"""From nothing to the shipped miniature: `reelign miniature train`.

Parts, each seeded, checkpointed every few minutes and resumed by the same command:

* the codec, on clean and defective clips;
* the denoiser with its text encoder: the first `COMMON_STEPS` on clean pairs, where words and shapes are learned;
* from there the base, on scraped-like pairs (`pairs.SCRAPED`): it takes over their faults;
* and from there the capacity check, on clean pairs to the end, which is not shipped as a model. It proves that what the
  base does badly is due to its data;
* the language model for prompt enhancement, by itself (`language.py`);
* the eye and the critic, on top of which rewards are fitted to votes, from the shipped denoiser (`train_eye.py`).

The rates are from measurements at this size: Muon for the matrices inside the blocks, AdamW for the rest.
"""

from __future__ import annotations

import logging
import shutil
from collections.abc import Callable, Iterable, Iterator
from itertools import islice
from pathlib import Path

import numpy as np
import torch
from safetensors.torch import load_file, save_file
from torch import Tensor, nn
from torch.nn.attention import SDPBackend, sdpa_kernel

from reelign.flow.path import interpolate, velocity_target
from reelign.miniature.build import GUIDANCE_SCALE, build_denoiser, build_text_encoder, build_tokenizer, make_pipeline
from reelign.miniature.language import train_language
from reelign.miniature.optimisers import muon_and_adamw, set_rate
from reelign.miniature.pairs import CLEAN, SCRAPED, PairQuality, pairs
from reelign.miniature.train_eye import train_eye
from reelign.miniature.world import FPS, FRAMES, SIDE
from reelign.models.base import NativeSize
from reelign.models.codec import BlockCodec, to_blocks
from reelign.models.wan import WanModel

logger = logging.getLogger(__name__)
Progress = Callable[[str, int, int, float], None]
"""Called with (part, step, steps, loss)."""

PARTS = ("codec", "base", "capacity", "enhancer", "eye")
CODEC_STEPS, CODEC_BATCH = 3000, 16
COMMON_STEPS = 2600
DENOISER_STEPS = {"base": 5000, "capacity": 7000}
"""Of both, the common steps included. The rate is flat in the common steps of either."""
QUALITY = {"common": CLEAN, "base": SCRAPED, "capacity": CLEAN}
PAIRS, BATCH = 48_000, 64
CAPTION_DROPOUT = 0.1
SIGMA_MEAN = 0.4
"""Training noise levels are sigmoid(N(SIGMA_MEAN, 1)): layout and motion are decided at the noisy end."""
FLAT = 0.6
"""Share of all steps before the rate goes down."""
SAVE_EVERY = 200


def train(out: Path, parts: Iterable[str] = PARTS, progress: Progress | None = None) -> Path:
    """Train the asked parts under `out`: `model` (base) and `capacity` are WanPipeline folders, `enhancer` is one of
    transformers', `eye` has a format of its own.

    Returns:
        the base, or the last of the parts that was made beside it.
    """
    out.mkdir(parents=True, exist_ok=True)
    made = out / "model"
    for part, teach in (("enhancer", train_language), ("eye", train_eye)):
        if part in parts:
            made = teach(out, progress)
    if not set(parts) - {"enhancer", "eye"}:
        return made
    codec = train_codec(out, progress)
    for part in parts:
        if part in DENOISER_STEPS:
            train_denoiser(out, part, codec, progress)
    return out / "model"


def train_codec(out: Path, progress: Progress | None = None) -> BlockCodec:
    """The autoencoder, trained on pixels; at the end its latents are measured so that they are normalised."""
    done = out / "codec"
    if (done / "config.json").exists():
        codec = BlockCodec.from_pretrained(done)
        codec.register_to_config(_name_or_path=done.name)  # what ships names no folder of the machine it was made on
        return codec  # pyright: ignore[reportReturnType]
    torch.manual_seed(0)
    codec = BlockCodec()
    _principal_components(codec)
    optimizer = torch.optim.AdamW(codec.parameters(), lr=2e-3, betas=(0.9, 0.95), weight_decay=0.0)
    state, start = out / "codec.training.pt", 0
    if state.exists():
        start = _resume(state, codec, [optimizer])
    quality = PairQuality(defects=0.3)
    source = pairs(CODEC_STEPS * CODEC_BATCH, quality, seed=1)
    for step, video in enumerate(_video_batches(islice(source, start * CODEC_BATCH, None), CODEC_BATCH), start):
        set_rate(optimizer, 2e-3, step, CODEC_STEPS, flat=0.4)
        error = codec.decode(codec.encode(video, return_dict=False)[0].mode(), return_dict=False)[0] - video
        loss = error.square().mean() + 0.02 * error.abs().mean()
        optimizer.zero_grad()
        loss.backward()
        nn.utils.clip_grad_norm_(codec.parameters(), 0.5)
        optimizer.step()
        _report(progress, "codec", step + 1, CODEC_STEPS, float(loss.detach()))
        if (step + 1) % SAVE_EVERY == 0:
            _save(state, step + 1, codec, [optimizer])
    _measure_latents(codec)
    codec.save_pretrained(done)
    return codec


@torch.no_grad()
def _principal_components(codec: BlockCodec) -> None:
    """Start the linear maps from the principal components of clean blocks."""
    videos = torch.cat(list(_video_batches(pairs(384, PairQuality(defects=0.3), seed=2), 64)))
    rows = to_blocks(videos).permute(0, 2, 3, 4, 1).flatten(0, 3)
    mean = rows.mean(0)
    centred = rows - mean
    vectors = torch.linalg.eigh(centred.T @ centred / len(rows))[1].flip(1)[:, : codec.config["z_dim"]]
    codec.analysis.load_state_dict({"weight": vectors.T[:, :, None, None, None], "bias": -(mean @ vectors)})
    codec.synthesis.load_state_dict({"weight": vectors[:, :, None, None, None], "bias": mean})


@torch.no_grad()
def _measure_latents(codec: BlockCodec) -> None:
    """Write mean and spread of each latent channel into the config.

    The spread is the square root of the standard deviation (times a common factor): full whitening would lend the weak
    channels, which carry little of the picture, as much weight as the strong ones.
    """
    latents = torch.cat(
        [codec.encode(v, return_dict=False)[0].mode() for v in _video_batches(pairs(512, CLEAN, seed=3), 64)]
    )
    deviation = latents.std((0, 2, 3, 4))
    root = deviation.sqrt()
    scale = root * (deviation / root).square().mean().sqrt()
    codec.register_to_config(latents_mean=latents.mean((0, 2, 3, 4)).tolist(), latents_std=scale.tolist())


def train_denoiser(out: Path, part: str, codec: BlockCodec, progress: Progress | None = None) -> None:
    """Denoiser and text encoder, trained together; the averaged weights are saved as a WanPipeline folder.

    `part` is "base" or "capacity", which go on from the common steps, or "common", which ends as a training state.
    """
    target, state = out / ("model" if part == "base" else part), out / f"{part}.training.pt"
    if (target / "model_index.json").exists():
        return
    if part != "common" and not state.exists():
        train_denoiser(out, "common", codec, progress)
        shutil.copyfile(out / "common.training.pt", state)
    latents, tokens, masks, empty = _encoded_pairs(out, part, codec)
    torch.manual_seed(0)
    network = nn.ModuleDict({"denoiser": build_denoiser(), "text_encoder": build_text_encoder()})
    average = {name: value.detach().clone() for name, value in network.named_parameters()}
    muon, adamw = muon_and_adamw(network, "blocks.", ".block.")
    start = _resume(state, network, [muon, adamw], average) if state.exists() else 0
    until = COMMON_STEPS if part == "common" else DENOISER_STEPS[part]
    for step in range(start, until):
        generator = torch.Generator().manual_seed(step)
        for optimizer, rate in ((muon, 0.02), (adamw, 2e-3)):
            set_rate(optimizer, rate, step, DENOISER_STEPS.get(part, until), flat=1.0 if part == "common" else FLAT)
        rows = torch.randint(len(latents), (BATCH,), generator=generator)
        dropped = torch.rand(BATCH, generator=generator) < CAPTION_DROPOUT
        ids = torch.where(dropped[:, None], empty[0], tokens[rows])
        mask = torch.where(dropped[:, None], empty[1], masks[rows])
        loss = _flow_matching_loss(network, latents[rows].float(), ids, mask, generator)
        muon.zero_grad()
        adamw.zero_grad()
        loss.backward()
        nn.utils.clip_grad_norm_(network.parameters(), 1.0)
        muon.step()
        adamw.step()
        _average(average, network, min(0.998, (1 + step) / (10 + step)))
        _report(progress, part, step + 1, until, float(loss.detach()))
        if (step + 1) % SAVE_EVERY == 0 or step + 1 == until:
            _save(state, step + 1, network, [muon, adamw], average)
    if part != "common":
        save_average(network, average, codec, target)


def save_average(network: nn.ModuleDict, average: dict[str, Tensor], codec: BlockCodec, folder: Path) -> None:
    """Write the averaged weights as a complete WanPipeline folder."""
    with torch.no_grad():
        for name, value in network.named_parameters():
            value.copy_(average[name])
    pipeline = make_pipeline(network["denoiser"], network["text_encoder"], codec)
    WanModel(pipeline, folder.name, NativeSize(FRAMES, SIDE, SIDE, FPS, guidance_scale=GUIDANCE_SCALE)).save(folder)


def _flow_matching_loss(
    network: nn.ModuleDict, clean: Tensor, ids: Tensor, mask: Tensor, generator: torch.Generator
) -> Tensor:
    sigma = torch.sigmoid(torch.randn(len(clean), generator=generator) + SIGMA_MEAN)
    noise = torch.randn(clean.shape, generator=generator)
    # On CPUs with matrix units bf16 is a third faster, but only with the plain attention kernel: the backward pass of
    # the fused one is slow in bf16.
    with torch.autocast("cpu", torch.bfloat16), sdpa_kernel(SDPBackend.MATH):
        text = network["text_encoder"](input_ids=ids, attention_mask=mask).last_hidden_state
        text = text * mask[:, :, None]
        predicted = network["denoiser"](
            hidden_states=interpolate(clean, noise, sigma[:, None, None, None, None]),
            timestep=1000 * sigma,
            encoder_hidden_states=text,
            return_dict=False,
        )[0]
    return (predicted.float() - velocity_target(clean, noise)).square().mean()


@torch.no_grad()
def _average(average: dict[str, Tensor], network: nn.Module, decay: float) -> None:
    for name, value in network.named_parameters():
        average[name].lerp_(value, 1 - decay)


def _encoded_pairs(out: Path, part: str, codec: BlockCodec) -> tuple[Tensor, Tensor, Tensor, tuple[Tensor, Tensor]]:
    """Normalised latents (fp16) and tokens of all pairs, made once and kept in `out`."""
    tokenizer = build_tokenizer()
    path = out / f"{'scraped' if QUALITY[part] is SCRAPED else 'clean'}.pairs.safetensors"
    if not path.exists():
        latents = torch.empty(PAIRS, codec.config["z_dim"], 5, 8, 8, dtype=torch.float16)
        captions: list[str] = []
        source = pairs(PAIRS, QUALITY[part], seed=4 if part == "base" else 5)
        for index, chunk in enumerate(_chunks(source, 64)):
            captions += [pair.caption for pair in chunk]
            rows = slice(index * 64, index * 64 + len(chunk))
            latents[rows] = normalised_latents(codec, np.stack([pair.frames for pair in chunk])).half()
            _report(progress=None, part=part, step=rows.stop, steps=PAIRS, loss=0.0)
        words = tokenizer(captions, padding="max_length", truncation=True, return_tensors="pt")
        save_file({"latents": latents, "ids": words["input_ids"], "mask": words["attention_mask"]}, path)
    stored = load_file(path)
    none = tokenizer([""], padding="max_length", truncation=True, return_tensors="pt")
    return stored["latents"], stored["ids"], stored["mask"], (none["input_ids"], none["attention_mask"])


@torch.no_grad()
def normalised_latents(codec: BlockCodec, frames: np.ndarray) -> Tensor:
    """Frames uint8 (B, T, H, W, 3) to latents (B, C, F, h, w) with the codec's own mean and spread removed."""
    latents = codec.encode(_to_video(frames), return_dict=False)[0].mode()
    mean, std = (
        torch.tensor(v).view(1, -1, 1, 1, 1) for v in (codec.config["latents_mean"], codec.config["latents_std"])
    )
    return (latents - mean) / std


def _to_video(frames: np.ndarray) -> Tensor:
    return torch.from_numpy(frames).permute(0, 4, 1, 2, 3).float() / 127.5 - 1


def _video_batches(source: Iterable, size: int) -> Iterator[Tensor]:
    for chunk in _chunks(iter(source), size):
        yield _to_video(np.stack([pair.frames for pair in chunk]))


def _chunks(source: Iterator, size: int) -> Iterator[list]:
    while chunk := list(islice(source, size)):
        yield chunk


def _report(progress: Progress | None, part: str, step: int, steps: int, loss: float) -> None:
    if progress is not None:
        progress(part, step, steps, loss)
    if step % 100 == 0:
        logger.info("%s %d/%d loss %.4f", part, step, steps, loss)


def _save(
    path: Path,
    step: int,
    module: nn.Module,
    optimizers: list[torch.optim.Optimizer],
    average: dict[str, Tensor] | None = None,
) -> None:
    """One training state, replaced atomically; read back with `weights_only=True`."""
    state = {
        "step": step,
        "module": module.state_dict(),
        "optimizers": [optimizer.state_dict() for optimizer in optimizers],
        "average": average or {},
    }
    partial = path.with_suffix(".partial")
    torch.save(state, partial)
    partial.replace(path)


def _resume(
    path: Path,
    module: nn.Module,
    optimizers: list[torch.optim.Optimizer],
    average: dict[str, Tensor] | None = None,
) -> int:
    state = torch.load(path, weights_only=True)
    module.load_state_dict(state["module"])
    for optimizer, saved in zip(optimizers, state["optimizers"], strict=True):
        optimizer.load_state_dict(saved)
    if average is not None:
        average.update(state["average"])
    return int(state["step"])

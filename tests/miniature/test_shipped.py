"""The files that ship: their size, their form, and that `train` leads to them."""

from pathlib import Path

import numpy as np
import torch

from command import reelign
from reelign import miniature
from reelign.miniature.captions import full_caption
from reelign.miniature.pairs import CLEAN, pairs
from reelign.miniature.train import train
from reelign.models.codec import BlockCodec
from reelign.models.load import load_model, weights_identity

ASSETS = Path(miniature.__file__).parent / "assets"


def test_the_package_data_is_small_and_safe():
    files = [path for path in ASSETS.rglob("*") if path.is_file()]
    assert sum(path.stat().st_size for path in files) <= 20 * 2**20
    allowed = {".safetensors", ".json", ".csv", ".md", ".mp4", ".webm", ".mkv", ".mov", ".jinja"}
    assert {path.suffix for path in files} <= allowed
    assert (ASSETS / "footage" / "LICENSES.md").exists()


def test_the_codec_is_causal_and_loses_little():
    model = load_model("miniature", device="cpu")
    clips = torch.from_numpy(np.stack([pair.frames for pair in pairs(24, CLEAN, 77)]))
    latents = model.encode_video(clips)
    assert latents.shape == (24, 16, 5, 8, 8)
    assert 0.3 < float(latents.std()) < 3
    error = (model.decode(latents).double() - clips.double()).square().mean()
    assert float(10 * torch.log10(255**2 / error)) >= 30
    changed = clips.clone()
    changed[:, 9:] = 0
    assert torch.allclose(model.encode_video(changed)[:, :, :3], latents[:, :, :3], atol=1e-5)


def test_the_codec_saves_and_loads_as_a_diffusers_model(tmp_path):
    codec = BlockCodec(width=16, depth=1)
    codec.save_pretrained(tmp_path)
    again = BlockCodec.from_pretrained(tmp_path)
    video = torch.randn(1, 3, 9, 16, 16)
    first, second = (c.decode(c.encode(video).latent_dist.mode()).sample for c in (codec, again))
    assert torch.equal(first, second)
    assert first.shape == video.shape


def test_training_from_nothing_resumes_to_the_same_bits(tmp_path, monkeypatch):
    """The whole of `reelign miniature train` in small: interrupted and uninterrupted give the same model."""
    from reelign.miniature import train as module

    monkeypatch.setattr(module, "CODEC_STEPS", 4)
    monkeypatch.setattr(module, "CODEC_BATCH", 4)
    monkeypatch.setattr(module, "PAIRS", 64)
    monkeypatch.setattr(module, "BATCH", 4)
    monkeypatch.setattr(module, "COMMON_STEPS", 1)
    monkeypatch.setattr(module, "DENOISER_STEPS", {"base": 4, "capacity": 4})
    monkeypatch.setattr(module, "SAVE_EVERY", 2)

    class Stopped(Exception):
        pass

    def stop(part: str, step: int, steps: int, loss: float) -> None:
        if part == "base" and step == 3:
            raise Stopped

    whole = train(tmp_path / "whole", ("base",))
    try:
        train(tmp_path / "twice", ("base",), stop)
    except Stopped:
        pass
    else:
        raise AssertionError("training was not interrupted")
    assert weights_identity(str(train(tmp_path / "twice", ("base",)))) == weights_identity(str(whole))
    assert load_model(whole, device="cpu").native_size.frames == 17


def test_generate_writes_the_same_clip_for_the_same_seed(tmp_path):
    from reelign.data.clip import read_clip
    from reelign.miniature.world import scenes

    prompt = full_caption(scenes(True)[0])
    clips = []
    for name, seed in (("a", "0"), ("b", "0"), ("c", "1")):
        done = reelign(
            "generate", "miniature", prompt, "--out", tmp_path / f"{name}.mp4", "--seed", seed, "--steps", "4"
        )
        assert done.returncode == 0, done.stderr
        clips.append(read_clip(tmp_path / f"{name}.mp4").frames)
    assert clips[0].shape == (17, 32, 32, 3)
    assert np.array_equal(clips[0], clips[1])
    assert not np.array_equal(clips[0], clips[2])

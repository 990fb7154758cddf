"""Encoded clips on disk, with the shipped miniature: read a second time, made again when stale or damaged."""

import logging
import shutil
from dataclasses import replace
from pathlib import Path

import pytest
import torch

from footage import pan, write
from reelign.data.buckets import Bucket, plan_buckets
from reelign.data.clip import write_clip
from reelign.data.curate import CurateConfig, curate
from reelign.data.latents import LatentCache, read_window, weights_digest
from reelign.data.manifest import read_manifest
from reelign.errors import ReelignError
from reelign.models.load import load_model

BUCKETS = [Bucket(frames=17, height=32, width=32)]


@pytest.fixture(scope="module")
def model():
    return load_model("miniature", device="cpu")


@pytest.fixture(scope="module")
def curated(tmp_path_factory):
    root = tmp_path_factory.mktemp("latents")
    for name in ("one", "two"):
        write(root / "footage" / f"{name}.mp4", pan(len(name) + ord(name[0]), 60, 1))
        (root / "footage" / f"{name}.txt").write_text(f"pan {name}")
    return curate(root / "footage", root / "dataset", CurateConfig(workers=1)).dataset


@pytest.fixture
def dataset(curated, tmp_path):
    return Path(shutil.copytree(curated, tmp_path / "dataset"))


def plan(dataset: Path):
    found = plan_buckets(read_manifest(dataset), BUCKETS, fps=8)
    assert (len(found.windows), found.refused) == (2, [])
    return found.windows


def shards(folder: Path) -> dict[Path, float]:
    return {path: path.stat().st_mtime_ns for path in folder.rglob("*.safetensors")}


def test_a_window_is_encoded_as_the_model_encodes_its_frames(model, dataset, tmp_path):
    windows = plan(dataset)
    encoded = LatentCache(tmp_path / "c", model).encode(dataset, windows)
    for window, (latents, conditions) in zip(windows, encoded, strict=True):
        frames = read_window(dataset, window)
        assert frames.shape == (17, 32, 32, 3)
        assert torch.equal(latents, model.encode_video(torch.from_numpy(frames)[None])[0])
        assert latents.shape == model.latent_shape(17, 32, 32)
        expected = model.encode_text([window.row["caption"]])
        assert conditions.keys() == expected.keys()
        assert all(torch.equal(conditions[name], expected[name][0]) for name in expected)


def test_the_second_time_everything_is_read_and_no_clip_is_needed(model, dataset, tmp_path):
    windows = plan(dataset)
    first = LatentCache(tmp_path / "c", model).encode(dataset, windows)
    before = shards(tmp_path / "c")
    assert len(before) == 4
    shutil.rmtree(dataset / "clips")
    told: list[tuple[int, int]] = []
    second = LatentCache(tmp_path / "c", model).encode(dataset, windows, lambda *done: told.append(done))
    assert shards(tmp_path / "c") == before
    assert told == [(1, 2), (2, 2)]
    for (latents, words), (stored, stored_words) in zip(first, second, strict=True):
        assert torch.equal(latents, stored)
        assert all(torch.equal(words[name], stored_words[name]) for name in words)


def test_another_autoencoder_clip_or_bucket_never_finds_the_old_latents(model, dataset, tmp_path):
    (window, _) = plan(dataset)
    cache = LatentCache(tmp_path / "c", model)
    ((old, _),) = cache.encode(dataset, [window])
    smaller = replace(window, bucket=Bucket(frames=17, height=16, width=16))
    assert cache.encode(dataset, [smaller])[0][0].shape == model.latent_shape(17, 16, 16)
    later = replace(window, indices=tuple(index + 1 for index in window.indices))
    assert not torch.equal(cache.encode(dataset, [later])[0][0], old)
    other = load_model("miniature", device="cpu")
    with torch.no_grad():
        next(other.pipeline.vae.parameters()).mul_(1.1)
    assert weights_digest(other.pipeline.vae) != weights_digest(model.pipeline.vae)
    ((new, _),) = LatentCache(tmp_path / "c", other).encode(dataset, [window])
    assert not torch.equal(new, old)
    ((again, _),) = LatentCache(tmp_path / "c", model).encode(dataset, [window])
    assert torch.equal(again, old)


def test_another_caption_is_encoded_anew(model, dataset, tmp_path):
    (window, _) = plan(dataset)
    cache = LatentCache(tmp_path / "c", model)
    cache.encode(dataset, [window])
    renamed = replace(window, row=dict(window.row) | {"caption": "a red circle"})
    ((_, words),) = cache.encode(dataset, [renamed])
    expected = model.encode_text(["a red circle"])
    assert all(torch.equal(words[name], expected[name][0]) for name in expected)
    assert len(shards(tmp_path / "c")) == 3


@pytest.mark.parametrize("damage", ["empty", "cut", "header", "one bit"])
def test_a_damaged_shard_is_said_and_made_again(model, dataset, tmp_path, caplog, damage):
    windows = plan(dataset)
    first = LatentCache(tmp_path / "c", model).encode(dataset, windows)
    for path in shards(tmp_path / "c"):
        data = bytearray(path.read_bytes())
        if damage == "one bit":
            data[-3] ^= 1
        elif damage == "header":
            data[12] ^= 0xFF
        path.write_bytes({"empty": b"", "cut": data[: len(data) // 2]}.get(damage, data))
    with caplog.at_level(logging.WARNING):
        second = LatentCache(tmp_path / "c", model).encode(dataset, windows)
    assert len(caplog.messages) == 4
    assert all("is damaged" in message and "made again" in message for message in caplog.messages)
    for (latents, words), (made, made_words) in zip(first, second, strict=True):
        assert torch.equal(latents, made)
        assert all(torch.equal(words[name], made_words[name]) for name in words)
    caplog.clear()
    LatentCache(tmp_path / "c", model).encode(dataset, windows)
    assert caplog.messages == []


def test_a_clip_deleted_after_the_curation_is_named_with_what_to_do(model, dataset, tmp_path):
    windows = plan(dataset)
    (dataset / windows[0].row["path"]).unlink()
    with pytest.raises(ReelignError, match=r"one-.*\.mp4 is gone: .* Run reelign curate again"):
        LatentCache(tmp_path / "c", model).encode(dataset, windows)


def test_a_clip_replaced_after_the_curation_is_named_with_what_to_do(model, dataset, tmp_path):
    windows = plan(dataset)
    write_clip(dataset / windows[1].row["path"], pan(77, 60), 24)
    with pytest.raises(ReelignError, match=r"two-.*\.mp4 is not the clip that was curated .* Run reelign curate again"):
        LatentCache(tmp_path / "c", model).encode(dataset, windows)


def test_a_manifest_that_promises_more_frames_than_the_clip_has_is_refused(dataset):
    (window, _) = plan(dataset)
    with pytest.raises(ReelignError, match=r"has 60 frames, its manifest says 61\. Run reelign curate"):
        read_window(dataset, replace(window, row=window.row | {"frames": 61}, indices=(*window.indices[:-1], 60)))


@pytest.mark.parametrize(("frames", "nearest"), [(6, "use 5 or 9"), (16, "use 13 or 17")])
def test_a_bucket_that_is_not_one_and_a_multiple_of_four_frames_is_refused_by_the_model(model, frames, nearest):
    with pytest.raises(ReelignError, match=nearest):
        model.latent_shape(frames, 32, 32)

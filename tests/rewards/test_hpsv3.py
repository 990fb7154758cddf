import hashlib
import json
import shutil
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image
from safetensors.torch import load_file, save_file
from transformers import AutoTokenizer, Qwen2VLConfig, Qwen2VLModel
from transformers.models.qwen2_vl.image_processing_pil_qwen2_vl import Qwen2VLImageProcessorPil

from reelign.data.clip import Clip
from reelign.errors import ReelignError
from reelign.rewards.base import RewardError
from reelign.rewards.hpsv3 import PIXELS, REWARD_TOKEN, TEMPLATE, HPSv3
from reelign.rewards.qwen2vl import patchify, resized
from tiny_qwen import QWEN, no_network, old_name, tiny_base

assert no_network  # a fixture that every test here uses


@pytest.fixture(scope="module")
def files(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, Path]:
    """A random HPSv3 in the released layout with the folder of its base."""
    folder, base = tmp_path_factory.mktemp("hpsv3"), tiny_base(tmp_path_factory.mktemp("base"))
    config = Qwen2VLConfig.from_pretrained(base)
    config.text_config.vocab_size = len(AutoTokenizer.from_pretrained(base)) + 1
    torch.manual_seed(0)
    weights = {old_name(name): 3 * value for name, value in Qwen2VLModel(config).state_dict().items()}
    weights["lm_head.weight"] = weights["model.embed_tokens.weight"].clone()
    for place, (rows, columns) in {0: (1024, 32), 3: (16, 1024), 5: (2, 16)}.items():
        weights[f"rm_head.{place}.weight"] = torch.randn(rows, columns) / columns**0.5
        weights[f"rm_head.{place}.bias"] = torch.randn(rows)
    save_file(weights, folder / "HPSv3.safetensors")
    return folder, base


def load(files: tuple[Path, Path], **options) -> HPSv3:
    return HPSv3(*files, dtype="float32", device="cpu", **options)


@pytest.fixture(scope="module")
def reward(files: tuple[Path, Path]) -> HPSv3:
    return load(files, frames=3, batch=4)


def clip(seed: int, prompt: str = "a red fox", frames: int = 3, height: int = 40, width: int = 56) -> Clip:
    noise = np.random.default_rng(seed).integers(0, 256, (frames, height // 4, width // 4, 3), np.uint8)
    return Clip(noise.repeat(4, 1).repeat(4, 2), 8.0, prompt, f"clip{seed}")


def scores(reward: HPSv3, *clips: Clip) -> np.ndarray:
    return reward(clips)["preference"]


def test_one_number_a_clip_that_follows_frames_and_prompt(reward):
    found = scores(reward, clip(0), clip(1), clip(0, "two blue boats on a lake"))
    assert found.shape == (3,)
    assert np.ptp(found) > 1e-2 and len(set(found.round(3))) == 3


def test_the_same_clips_give_the_same_numbers_and_no_random_number_is_drawn(files, reward):
    state = torch.get_rng_state()
    assert np.array_equal(scores(load(files, frames=3, batch=4), clip(0), clip(1)), scores(reward, clip(0), clip(1)))
    assert torch.equal(torch.get_rng_state(), state)


def test_a_batch_scores_as_one_by_one(reward):
    """Prompts and pictures of several lengths, so that most rows are padded; 1e-4 is float32 in another order."""
    clips = [clip(0, "fox"), clip(1, "a very long story " * 30), clip(2, "", height=120, width=40), clip(3)]
    alone = [scores(reward, one)[0] for one in clips]
    np.testing.assert_allclose(scores(reward, *clips), alone, atol=1e-4)


def test_bfloat16_is_close(files, reward):
    """8 bits of mantissa through two layers of a random model."""
    found = HPSv3(*files, frames=3, device="cpu")(clips := [clip(0), clip(1)])["preference"]
    assert not np.array_equal(found, scores(reward, *clips))
    np.testing.assert_allclose(found, scores(reward, *clips), atol=0.1)


def test_frames_are_spread_over_the_clip(files, reward):
    long = clip(4, frames=9)
    thinned = Clip(long.frames[[0, 4, 8]], 2.0, long.prompt, long.id)
    np.testing.assert_allclose(scores(reward, long), scores(reward, thinned), atol=1e-5)


def test_the_best_frames_are_the_best_30_percent_rounded_up(files, reward):
    """5 frames: mean of the best 2, for 0.3 * 5 = 1.5."""
    shown = clip(5, frames=5)
    each = [scores(reward, Clip(frame[None], 8.0, shown.prompt, "f"))[0] for frame in shown.frames]
    best = scores(load(files, frames=5, aggregate="top30"), shown)[0]
    assert best == pytest.approx(np.mean(sorted(each)[-2:]), abs=1e-4)
    assert scores(load(files, frames=5), shown)[0] == pytest.approx(np.mean(each), abs=1e-4)


def test_the_score_is_what_the_plain_parts_give(files, reward):
    """Transformers' own image processor and model, fed by hand: patches, text, positions, the token, the head."""
    folder, base = files
    shown = clip(6, frames=1, height=448, width=448)
    tokenizer = AutoTokenizer.from_pretrained(base)
    tokenizer.add_tokens([REWARD_TOKEN], special_tokens=True)
    picture = Qwen2VLImageProcessorPil(size={"shortest_edge": PIXELS, "longest_edge": PIXELS})(
        list(shown.frames), return_tensors="pt"
    )
    text = (
        "<|im_start|>system\nYou are a helpful assistant.<|im_end|>\n<|im_start|>user\n<|vision_start|>"
        + "<|image_pad|>" * 256
        + f"<|vision_end|>{TEMPLATE.format(text_prompt=shown.prompt)}<|im_end|>\n<|im_start|>assistant\n"
    )
    ids = tokenizer(text, return_tensors="pt").input_ids
    config = Qwen2VLConfig.from_pretrained(base)
    config.text_config.vocab_size = len(tokenizer)
    model, weights = Qwen2VLModel(config).eval(), load_file(folder / "HPSv3.safetensors")
    model.load_state_dict({name: weights[old_name(name)] for name in model.state_dict()})
    places = torch.arange(ids.shape[1]).view(1, 1, -1).expand(3, 1, -1)
    with torch.no_grad():
        hidden = model(ids, position_ids=places, **picture).last_hidden_state[0]
        x = hidden[ids[0].tolist().index(len(tokenizer) - 1)]
        for place in (0, 3, 5):
            x = weights[f"rm_head.{place}.weight"] @ (x.relu() if place else x) + weights[f"rm_head.{place}.bias"]
    assert scores(reward, shown)[0] == pytest.approx(x[0].item(), abs=1e-4)


def test_the_prompt_is_the_one_of_the_training():
    """The digest is that of the public text; one blank more is another model input."""
    assert hashlib.sha256(TEMPLATE.encode()).hexdigest().startswith("f6ee57479d4e9eee")


@pytest.mark.parametrize(("height", "width"), [(480, 832), (832, 480), (32, 32), (448, 448), (30, 600)])
def test_sides_are_multiples_of_28_near_the_asked_area_and_the_aspect_stays(height, width):
    tall, wide = resized(np.zeros((1, height, width, 3), np.uint8), PIXELS, PIXELS).shape[2:]
    assert tall % 28 == wide % 28 == 0
    assert tall * wide == pytest.approx(PIXELS, rel=0.35)  # 28 is coarse: a strip is 3 cells high
    assert tall / wide == pytest.approx(height / width, rel=0.35)


@pytest.mark.parametrize(("height", "width"), [(96, 160), (700, 500)])
def test_frames_are_resized_as_pillow_does(height, width):
    """Both round to 8 bits after each direction; their fixed-point weights differ, so 2 levels."""
    frame = clip(7, frames=1, height=height, width=width).frames[0]
    found = resized(frame[None], PIXELS, PIXELS)[0]
    assert found.dtype == torch.float32
    expected = np.array(Image.fromarray(frame).resize((found.shape[2], found.shape[1])))
    np.testing.assert_allclose(found.permute(1, 2, 0), expected.astype(float), atol=2)


def test_patches_are_rows_of_what_the_tower_convolves():
    """Row (t, y, x) holds channels, then frames, then pixels, of cell (y, x); 2 x 2 cells that merge follow another."""
    vision = Qwen2VLConfig(vision_config=QWEN["vision_config"]).vision_config
    pixels = torch.rand(3, 3, 56, 84) * 255
    rows, grid = patchify(pixels, vision)
    assert grid == (2, 4, 6)
    plain = rows.view(2, 2, 3, 2, 2, 3, 2, 14, 14)  # t, block y, block x, y, x, channel, frame, row, column
    cell = plain[1, 1, 2, 0, 1, 2]  # frames 2 and 2 again, cell y = 2, x = 5, blue
    expected = (pixels[2, 2, 28:42, 70:84] / 255 - 0.40821073) / 0.27577711
    torch.testing.assert_close(cell, expected.expand(2, -1, -1))


def changed(files: tuple[Path, Path], tmp_path: Path, change) -> tuple[Path, Path]:
    weights = load_file(files[0] / "HPSv3.safetensors")
    change(weights)
    save_file(weights, tmp_path / "HPSv3.safetensors")
    return tmp_path, files[1]


@pytest.mark.parametrize("name", ["visual.merger.mlp.2.bias", "model.layers.0.mlp.up_proj.weight", "rm_head.3.bias"])
def test_every_part_comes_from_the_file(files, reward, tmp_path, name):
    other = load(changed(files, tmp_path, lambda weights: weights[name].add_(1.0)), frames=3)
    assert abs(scores(other, clip(0)) - scores(reward, clip(0))) > 1e-3


def test_names_of_newer_transformers_load_too(files, reward, tmp_path):
    def rename(weights: dict[str, torch.Tensor]) -> None:
        for name in [name for name in weights if name.startswith(("visual.", "model."))]:
            new = f"model.{name}" if name.startswith("visual.") else name.replace("model.", "model.language_model.", 1)
            weights[new] = weights.pop(name)

    other = load(changed(files, tmp_path, rename), frames=3, batch=4)
    assert np.array_equal(scores(other, clip(0)), scores(reward, clip(0)))


@pytest.mark.parametrize(
    ("change", "said"),
    [
        (lambda weights: weights.pop("visual.patch_embed.proj.weight"), r"lack visual\.patch_embed\.proj\.weight"),
        (lambda weights: weights.update(rm_foot=torch.ones(1)), "hold the unknown .*rm_foot"),
        (
            lambda weights: weights.update({"rm_head.5.bias": torch.ones(3)}),
            r"another shape of rm_head\.5\.bias \(3,\)",
        ),
    ],
)
def test_weights_that_do_not_fit_are_named(files, tmp_path, change, said):
    with pytest.raises(ReelignError, match=said):
        load(changed(files, tmp_path, change))


def test_another_vocabulary_is_refused(files, tmp_path):
    """A tokenizer with one word more would shift what the reward token's row means."""
    base = tmp_path / "base"
    shutil.copytree(files[1], base)
    tokenizer = AutoTokenizer.from_pretrained(base)
    tokenizer.add_tokens(["<|more|>"])
    tokenizer.save_pretrained(base)
    with pytest.raises(ReelignError, match=r"another shape of language_model\.embed_tokens.*tokenizer"):
        load((files[0], base))


@pytest.mark.parametrize(
    ("break_it", "said"),
    [
        (lambda folder, base: (folder / "HPSv3.safetensors").unlink(), r"cannot read .*HPSv3\.safetensors"),
        (lambda folder, base: (folder / "HPSv3.safetensors").write_bytes(b"no"), r"cannot read .*HPSv3\.safetensors"),
        (lambda folder, base: (base / "config.json").unlink(), r"config\.json"),
        (lambda folder, base: (base / "config.json").write_text('{"model_type": "qwen2_5_vl"}'), "'qwen2_5_vl'"),
        (lambda folder, base: [path.unlink() for path in base.glob("*token*")], "tokenizer"),
        (lambda folder, base: shutil.rmtree(base), "there is no folder"),
    ],
)
def test_a_missing_or_damaged_file_is_named(files, tmp_path, break_it, said):
    folder, base = (Path(shutil.copytree(path, tmp_path / path.name)) for path in files)
    break_it(folder, base)
    with pytest.raises(ReelignError, match=said):
        load((folder, base))


@pytest.mark.parametrize("options", [{"frames": 0}, {"batch": 0}, {"aggregate": "best"}])
def test_an_option_out_of_range_is_refused(files, options):
    with pytest.raises(ReelignError, match="1 or more"):
        load(files, **options)


@pytest.mark.parametrize("word", [REWARD_TOKEN, "<|im_end|>", "<|image_pad|>"])
def test_a_prompt_that_speaks_the_models_own_words_is_refused(reward, word):
    with pytest.raises(RewardError, match="own words") as caught:
        reward([clip(0), clip(1, f"a fox {word}")])
    assert caught.value.clips == ("clip1",)


def test_a_tokenizer_that_splits_the_models_words_gives_no_score(files, tmp_path):
    base = Path(shutil.copytree(files[1], tmp_path / "base"))
    path = base / "tokenizer_config.json"
    path.write_text(json.dumps(json.loads(path.read_text()) | {"split_special_tokens": True}))
    with pytest.raises(RewardError, match="clip0"):
        load((files[0], base))([clip(0)])

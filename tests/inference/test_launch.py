"""What `LAUNCH.md` says: its Python is run as it stands, its commands carry the model's own numbers."""

import json
import re
import shlex
from pathlib import Path

import pytest
import torch

from reelign.inference.export import export_model
from reelign.models.adapter import LoraSettings, attach_lora, merge_lora, save_lora
from reelign.models.load import load_model
from reelign.sampling.sample import SampleConfig
from tiny_wan import tiny_wan

SIZE = {"frames": 5, "height": 32, "width": 48, "fps": 8.0, "guidance_scale": 2.0}
DISTILLED = {"steps": 3, "shift": 5.0, "solver": "renoise", "guidance_scale": 1.0}


def small(folder: Path, kind="2.1", **card) -> Path:
    """A tiny Wan whose card asks for clips that a test can afford."""
    tiny_wan(folder, kind)
    (folder / "card.json").write_text(json.dumps({"kind": "full", "native_size": SIZE} | card))
    return folder


def lora(base: Path | str, folder: Path, **card) -> Path:
    model = load_model(base, device="cpu")
    merge_lora(model)
    attach_lora(model, LoraSettings(rank=2))
    save_lora(model, folder, base=str(base))
    (folder / "card.json").write_text(json.dumps({"kind": "lora", "base": str(base)} | card))
    return folder


def notes(name: Path | str, out: Path, form="diffusers", merge=None) -> str:
    export_model(str(name), out, merge, form)
    return (out / "LAUNCH.md").read_text()


def code(text: str, language: str) -> list[str]:
    return re.findall(rf"```{language}\n(.*?)\n```", text, re.DOTALL)


def ran(text: str, folder: Path, monkeypatch) -> dict:
    """The Python of the notes, run from the folder that holds the export."""
    monkeypatch.chdir(folder)
    names: dict = {}
    [program] = code(text, "python")
    exec(compile(program, "LAUNCH.md", "exec"), names)
    assert (folder / "clip.mp4").stat().st_size > 0
    return names


@pytest.mark.parametrize("kind", ["2.1", "2.2-a14b"])
@pytest.mark.parametrize(
    ("form", "adapter"),
    [("diffusers", False), ("comfyui", False), ("diffusers", True), ("peft", True), ("comfyui", True)],
)
def test_its_python_runs(tmp_path, monkeypatch, kind, form, adapter):
    name = small(tmp_path / "wan", kind, sampler=DISTILLED | {"solver": "unipc", "guidance_scale": 2.0})
    if adapter:
        name = lora(name, tmp_path / "lora")
    text = notes(name, tmp_path / "tram", form, merge=False if adapter and form == "diffusers" else None)
    names = ran(text, tmp_path, monkeypatch)
    assert len(names["clip"]) == SIZE["frames"]
    assert {names["pipe"].vae.dtype, names["pipe"].transformer.proj_out.weight.dtype} == {torch.float32, torch.bfloat16}


def test_its_python_runs_on_the_miniature(tmp_path, monkeypatch):
    text = notes("miniature", tmp_path / "ball")
    assert ran(text, tmp_path, monkeypatch)["clip"].shape == (17, 32, 32, 3)
    assert "ComfyUI cannot run this model" in text
    assert len(code(text, "sh")) == 0


@pytest.mark.parametrize("solver", ["unipc", "euler", "renoise"])
@pytest.mark.parametrize("steps", [1, 4])
def test_diffusers_gets_the_samplers_own_noise_levels(tmp_path, monkeypatch, solver, steps):
    sampler = DISTILLED | {"solver": solver, "steps": steps}
    text = notes(small(tmp_path / "wan", sampler=sampler), tmp_path / "tram")
    scheduler = ran(text, tmp_path, monkeypatch)["pipe"].scheduler
    grid = SampleConfig.model_validate(sampler).grid.float()
    torch.testing.assert_close(scheduler.sigmas, grid, atol=2e-6, rtol=0)
    assert scheduler.config.get("stochastic_sampling", False) == (solver == "renoise")


def test_servers_are_asked_for_the_models_own_clip_and_sampler(tmp_path):
    base = small(tmp_path / "wan", "2.2-a14b", sampler=DISTILLED)
    text = notes(base, tmp_path / "tram in rain")
    commands = [shlex.split(line) for block in code(text, "sh") for line in block.replace("\\\n", "").splitlines()]
    generate = next(words for words in commands if words[:2] == ["sglang", "generate"])
    wanted = {"--num-frames": "5", "--height": "32", "--width": "48", "--fps": "8", "--num-inference-steps": "3"}
    wanted |= {"--guidance-scale": "1", "--model-path": "./tram in rain"}
    assert {key: generate[generate.index(key) + 1] for key in wanted} == wanted
    serve = next(words for words in commands if words[0] == "vllm")
    assert serve[1:3] == ["serve", "./tram in rain"]
    assert serve[-4:] == ["--flow-shift", "5", "--boundary-ratio", "0.875"]
    ask = next(words for words in commands if words[0] == "curl")
    assert {"size=48x32", "num_frames=5", "num_inference_steps=3", "flow_shift=5"} < set(ask)
    assert "others than those that were judged" in text


def test_it_says_what_was_not_run(tmp_path):
    text = notes(small(tmp_path / "wan"), tmp_path / "tram")
    assert "follow their documentation and were not run" in text
    assert re.findall("^## (.*)", text, re.MULTILINE) == [
        "diffusers",
        "ComfyUI (not run)",
        "SGLang (not run)",
        "vLLM-Omni (not run)",
    ]


def test_servers_take_a_lora_in_wans_names(tmp_path):
    name = lora(small(tmp_path / "wan", "2.2-a14b"), tmp_path / "lora")
    alone = notes(name, tmp_path / "alone", "peft")
    assert "--format comfyui" in alone
    assert "sglang" not in "".join(code(alone, "sh"))
    text = notes(name, tmp_path / "tram", "comfyui")
    files = ["tram/tram_lora_high_noise.safetensors", "tram/tram_lora_low_noise.safetensors"]
    assert f"--lora-path {' '.join(files)}" in text
    assert json.dumps(files) in text


def test_a_lora_on_a_lora_says_that_its_base_is_merged_first(tmp_path, monkeypatch):
    first = lora(small(tmp_path / "wan", sampler=DISTILLED), tmp_path / "first")
    second = lora(first, tmp_path / "second")
    text = notes(second, tmp_path / "tram", "comfyui")
    assert f"`reelign export {first} --out base`" in text
    export_model(str(first), tmp_path / "base")
    ran(text, tmp_path, monkeypatch)


@pytest.mark.parametrize("form", ["diffusers", "comfyui"])
def test_a_causal_student_is_for_reelign_alone(tmp_path, form):
    base = small(tmp_path / "wan")
    (base / "causal.json").write_text('{"block": 1, "window": null, "sinks": 0}')
    text = notes(base, tmp_path / "student", form)
    assert "reelign stream student" in text
    assert code(text, "python") == []
    assert not re.search("(sglang|vllm) (serve|generate)", text)

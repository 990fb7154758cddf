"""Every format is loaded again by the library that defines it, and predicts what the exported model predicted."""

import json
from pathlib import Path

import pytest
import torch
from diffusers import WanPipeline, WanTransformer3DModel
from peft import PeftModel
from safetensors.torch import load_file

from command import reelign
from disk import files_no_larger_than
from reelign.errors import ReelignError
from reelign.inference.export import export_model
from reelign.models.adapter import LoraSettings, attach_lora, merge_lora, save_lora
from reelign.models.load import load_model
from tiny_wan import KINDS, stir, tiny_wan

EVERYWHERE = LoraSettings(
    rank=4,
    alpha=6,
    targets=[*LoraSettings().targets, "proj_out", "time_proj", "time_embedder.linear_1", "text_embedder.linear_2"],
)


def velocities(model):
    shape = model.latent_shape(5, 32, 32)
    width = model.denoisers()["transformer"].config.text_dim
    latents = torch.randn(2, *shape, generator=torch.Generator().manual_seed(3))
    conditions = {"text": torch.randn(2, 6, width, generator=torch.Generator().manual_seed(4))}
    with torch.no_grad():
        return model.velocity(latents, torch.tensor([0.95, 0.3]), conditions)


def adapted(base: Path | str, folder: Path, settings: LoraSettings = EVERYWHERE):
    """A model whose adapters do something, and its artifact."""
    model = load_model(base, device="cpu")
    attach_lora(model, settings)
    stir(model)
    save_lora(model, folder, base=str(base))
    return model


def stems(folder: Path, name: str, experts: bool) -> dict[str, str]:
    ends = {"transformer": "_high_noise", "transformer_2": "_low_noise"} if experts else {"transformer": ""}
    files = {part: f"{name}{end}.safetensors" for part, end in ends.items()}
    assert {path.name for path in folder.glob("*.safetensors")} == set(files.values())
    return files


def from_original(base: Path | str, folder: Path, name: str = "out"):
    """The base with its networks from files in Wan's names."""
    model = load_model(base, device="cpu")
    place = Path(model.pipeline.config._name_or_path)
    for part, file in stems(folder, name, "transformer_2" in model.denoisers()).items():
        network = WanTransformer3DModel.from_single_file(folder / file, config=str(place), subfolder=part)
        setattr(model.pipeline, part, network.eval())
    return model


def same(found, wanted) -> None:
    """Weights to the bit. Velocities to the last digits of float32: kernels add in another order where the mapping of a
    file leaves a tensor at another alignment."""
    for part, network in wanted.denoisers().items():
        weights = found.denoisers()[part].state_dict()
        assert weights.keys() == network.state_dict().keys()
        assert all(torch.equal(weights[key], value) for key, value in network.state_dict().items())
    torch.testing.assert_close(velocities(found), velocities(wanted), rtol=1e-5, atol=1e-6)


@pytest.mark.parametrize("kind", KINDS)
def test_a_file_for_comfyui_loads_as_wans_own_checkpoint(tmp_path, kind):
    base = tiny_wan(tmp_path / "wan", kind)
    export_model(str(base), tmp_path / "out", form="comfyui")
    same(from_original(base, tmp_path / "out"), load_model(base, device="cpu"))


def test_the_miniature_for_comfyui_predicts_what_it_predicted(tmp_path):
    export_model("miniature", tmp_path / "out", form="comfyui")
    same(from_original("miniature", tmp_path / "out"), load_model("miniature", device="cpu"))


@pytest.mark.parametrize("kind", KINDS)
def test_a_lora_for_comfyui_loads_as_a_lora_in_wans_names(tmp_path, kind):
    """Alpha / rank is 1.5 and folded into a factor: equal but for one rounding."""
    base = tiny_wan(tmp_path / "wan", kind)
    wanted = velocities(adapted(base, tmp_path / "lora"))
    export_model(str(tmp_path / "lora"), tmp_path / "out", form="comfyui")
    found = load_model(base, device="cpu")
    plain = velocities(found)
    for part, file in stems(tmp_path / "out", "out_lora", kind == "2.2-a14b").items():
        names = set(load_file(tmp_path / "out" / file))
        assert {"diffusion_model.blocks.0.self_attn.q.lora_A.weight", "diffusion_model.head.head.lora_B.weight"} < names
        second = {"load_into_transformer_2": True} if part == "transformer_2" else {}
        found.pipeline.load_lora_weights(tmp_path / "out", weight_name=file, **second)
    torch.testing.assert_close(velocities(found), wanted, rtol=1e-5, atol=1e-5)
    assert float((wanted - plain).abs().max()) > 1e-2


def test_a_lora_on_the_miniature_loads_in_wans_names_bit_for_bit(tmp_path):
    """Alpha is the rank, as it is by default: nothing is rounded."""
    wanted = velocities(adapted("miniature", tmp_path / "lora", LoraSettings(rank=4, alpha=4)))
    export_model(str(tmp_path / "lora"), tmp_path / "out", form="comfyui")
    found = load_model("miniature", device="cpu")
    found.pipeline.load_lora_weights(tmp_path / "out", weight_name="out_lora.safetensors")
    assert torch.equal(velocities(found), wanted)


def test_a_lora_may_be_merged_for_comfyui(tmp_path):
    base = tiny_wan(tmp_path / "wan")
    model = adapted(base, tmp_path / "lora")
    merge_lora(model)
    export_model(str(tmp_path / "lora"), tmp_path / "out", merge=True, form="comfyui")
    same(from_original(base, tmp_path / "out"), model)


@pytest.mark.parametrize("kind", KINDS)
def test_a_peft_adapter_loads_in_peft_with_the_identical_output(tmp_path, kind):
    base = tiny_wan(tmp_path / "wan", kind)
    wanted = velocities(adapted(base, tmp_path / "lora"))
    export_model(str(tmp_path / "lora"), tmp_path / "out", form="peft")
    found = load_model(base, device="cpu")
    places = {"transformer": tmp_path / "out", "transformer_2": tmp_path / "out" / "transformer_2"}
    for part, network in found.denoisers().items():
        assert json.loads((places[part] / "adapter_config.json").read_text())["base_model_name_or_path"] == str(base)
        PeftModel.from_pretrained(network, str(places[part]))
    assert torch.equal(velocities(found), wanted)


def test_diffusers_loads_what_was_not_merged(tmp_path):
    base = tiny_wan(tmp_path / "wan")
    wanted = velocities(adapted(base, tmp_path / "lora"))
    export_model(str(tmp_path / "lora"), tmp_path / "out", merge=False)
    found = load_model(base, device="cpu")
    found.pipeline = WanPipeline.from_pretrained(base)
    found.pipeline.load_lora_weights(tmp_path / "out")
    assert torch.equal(velocities(found), wanted)


@pytest.mark.parametrize("form", ["diffusers", "peft", "comfyui"])
@pytest.mark.parametrize("merge", [None, False])
def test_a_causal_student_stays_one(tmp_path, form, merge):
    base = tiny_wan(tmp_path / "wan")
    adapted(base, tmp_path / "lora")
    (tmp_path / "lora" / "causal.json").write_text('{"block": 1, "window": 2, "sinks": 1}')
    export_model(str(tmp_path / "lora"), tmp_path / "out", merge=merge, form=form)
    assert json.loads((tmp_path / "out" / "causal.json").read_text()) == {"block": 1, "window": 2, "sinks": 1}
    assert "reelign stream" in (tmp_path / "out" / "LAUNCH.md").read_text()


@pytest.mark.parametrize(
    ("form", "merge", "words"),
    [
        ("peft", None, r"miniature has no adapter: it is a full model"),
        ("diffusers", None, "out exists already"),
    ],
)
def test_what_cannot_be_written_is_said_before_anything_is(tmp_path, form, merge, words):
    out = tmp_path / "out"
    if form == "diffusers":
        out.mkdir()
    with pytest.raises(ReelignError, match=words):
        export_model("miniature", out, merge, form)
    assert not out.exists() or list(out.iterdir()) == []


def test_a_peft_adapter_is_not_merged(tmp_path):
    adapted(tiny_wan(tmp_path / "wan"), tmp_path / "lora")
    with pytest.raises(ReelignError, match="--merge would fold away"):
        export_model(str(tmp_path / "lora"), tmp_path / "out", merge=True, form="peft")


def test_a_base_that_is_gone_is_named_before_anything_is_written(tmp_path):
    adapted(tiny_wan(tmp_path / "wan"), tmp_path / "lora")
    (tmp_path / "wan").rename(tmp_path / "moved")
    with pytest.raises(ReelignError, match=r"there is no model .*wan"):
        export_model(str(tmp_path / "lora"), tmp_path / "out", form="peft")
    assert {path.name for path in tmp_path.iterdir()} == {"lora", "moved"}


@pytest.mark.parametrize(
    ("form", "merge"),
    [("diffusers", True), ("diffusers", False), ("comfyui", True), ("comfyui", None), ("peft", None)],
)
def test_a_full_disk_leaves_nothing_half_written(tmp_path, form, merge):
    adapted(tiny_wan(tmp_path / "wan"), tmp_path / "lora")
    before = {path.name for path in tmp_path.iterdir()}
    with files_no_larger_than(10_000), pytest.raises(ReelignError, match="Free some space"):
        export_model(str(tmp_path / "lora"), tmp_path / "out", merge, form)
    assert {path.name for path in tmp_path.iterdir()} == before


def test_the_command_writes_the_format_that_is_asked_for(tmp_path):
    done = reelign("export", "miniature", "--format", "comfyui", "--out", tmp_path / "ball")
    assert done.returncode == 0, done.stderr
    assert {path.name for path in (tmp_path / "ball").iterdir()} == {"ball.safetensors", "LAUNCH.md"}
    assert "LAUNCH.md says how to run it" in done.stdout


def test_the_command_refuses_a_format_that_there_is_not(tmp_path):
    done = reelign("export", "miniature", "--format", "gguf", "--out", tmp_path / "ball")
    assert done.returncode != 0
    assert "comfyui" in done.stderr
    assert not (tmp_path / "ball").exists()

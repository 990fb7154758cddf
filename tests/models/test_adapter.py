import pytest
import torch
from diffusers import WanPipeline
from torch import nn

from reelign.errors import ReelignError
from reelign.models.adapter import LoraSettings, attach_lora, merge_lora, save_lora
from reelign.models.load import load_model
from tiny_wan import KINDS, stir, tiny_wan

SETTINGS = LoraSettings(rank=4, alpha=6)


def trained(path, settings=SETTINGS):
    """A model whose adapters do something."""
    model = load_model(path, device="cpu")
    attach_lora(model, settings)
    stir(model)
    return model


def velocities(model):
    latents = torch.randn(2, *model.latent_shape(5, 32, 32), generator=torch.Generator().manual_seed(3))
    conditions = {"text": torch.randn(2, 6, 32, generator=torch.Generator().manual_seed(4))}
    with torch.no_grad():
        return model.velocity(latents, torch.tensor([0.95, 0.3]), conditions)


def test_adapters_start_from_their_seed_alone(tmp_path):
    started = {}
    for run, (state, seed) in enumerate([(1, 0), (2, 0), (1, 3)]):
        model = load_model(tiny_wan(tmp_path / str(run), "2.1"), device="cpu")
        torch.manual_seed(state)
        attach_lora(model, SETTINGS, seed)
        started[run] = {n: p for n, p in model.denoisers()["transformer"].named_parameters() if "lora_A" in n}
        assert all(bool(p.any()) for p in started[run].values())
    assert all(torch.equal(started[0][name], started[1][name]) for name in started[0])
    assert not any(torch.equal(started[0][name], started[2][name]) for name in started[0])


@pytest.mark.parametrize("kind", ["2.1", "2.2-a14b"])
def test_an_adapter_on_an_adapter_loads_as_it_was_trained(tmp_path, kind):
    """A LoRA stage after a LoRA stage: the first adapter is merged, the second lies on top."""
    tiny_wan(tmp_path / "wan", kind)
    save_lora(trained(tmp_path / "wan"), tmp_path / "first", base=str(tmp_path / "wan"))
    second = load_model(tmp_path / "first", device="cpu")
    merge_lora(second)
    with_first = velocities(second)
    attach_lora(second, SETTINGS, seed=5)
    with torch.no_grad():
        for network in second.denoisers().values():
            for name, parameter in network.named_parameters():
                if "lora_B" in name:
                    parameter.fill_(0.05)
    save_lora(second, tmp_path / "second", base=str(tmp_path / "first"))
    found = velocities(load_model(tmp_path / "second", device="cpu"))
    assert not torch.allclose(found, with_first, atol=1e-3)
    torch.testing.assert_close(found, velocities(second), atol=1e-5, rtol=1e-5)


def test_every_targeted_module_is_named(tmp_path):
    model = load_model(tiny_wan(tmp_path / "wan", "2.2-a14b"), device="cpu")
    coverage = attach_lora(model, SETTINGS)
    linear = [
        f"{part}.{name}"
        for part, network in load_model(tmp_path / "wan", device="cpu").denoisers().items()
        for name, module in network.named_modules()
        if isinstance(module, nn.Linear) and "blocks." in name
    ]
    assert sorted(name for names in coverage.modules.values() for name in names) == sorted(linear)
    assert coverage.sentence.startswith(f"{len(linear)} modules carry an adapter")
    learning = {n for net in model.denoisers().values() for n, p in net.named_parameters() if p.requires_grad}
    assert learning
    assert all("lora_" in name for name in learning)


def test_a_target_that_matches_nothing_is_an_error_with_near_names(tmp_path):
    model = load_model(tiny_wan(tmp_path / "wan"), device="cpu")
    with pytest.raises(ReelignError, match=r"to_qq.*to_q"):
        attach_lora(model, LoraSettings(targets=["to_k", "to_qq"]))


@pytest.mark.parametrize("kind", KINDS)
def test_a_saved_adapter_loads_here_and_in_diffusers_with_the_identical_output(tmp_path, kind):
    base = tiny_wan(tmp_path / "wan", kind)
    plain = velocities(load_model(base, device="cpu"))
    model = trained(base)
    wanted = velocities(model)
    assert float((wanted - plain).abs().max()) > 1e-3
    save_lora(model, tmp_path / "adapter", base=str(base))
    assert torch.equal(velocities(load_model(tmp_path / "adapter", device="cpu")), wanted)
    theirs = load_model(base, device="cpu")
    theirs.pipeline = WanPipeline.from_pretrained(base)
    theirs.pipeline.load_lora_weights(tmp_path / "adapter")
    if kind == "2.2-a14b":
        theirs.pipeline.load_lora_weights(tmp_path / "adapter" / "transformer_2", load_into_transformer_2=True)
    assert torch.equal(velocities(theirs), wanted)


def test_a_merged_adapter_is_a_plain_model_with_the_same_output(tmp_path):
    base = tiny_wan(tmp_path / "wan")
    model = trained(base)
    wanted = velocities(model)
    merge_lora(model)
    assert not [name for name, _ in model.pipeline.transformer.named_parameters() if "lora" in name]
    torch.testing.assert_close(velocities(model), wanted, rtol=1e-4, atol=1e-5)


def test_a_damaged_adapter_is_named(tmp_path):
    base = tiny_wan(tmp_path / "wan")
    save_lora(trained(base), tmp_path / "adapter", base=str(base))
    weights = tmp_path / "adapter" / "pytorch_lora_weights.safetensors"
    weights.write_bytes(weights.read_bytes()[:100])
    with pytest.raises(ReelignError, match=r"pytorch_lora_weights\.safetensors"):
        load_model(tmp_path / "adapter", device="cpu")

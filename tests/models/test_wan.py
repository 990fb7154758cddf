"""The adapter against diffusers itself: the same latents, the same files, the same clips."""

import pytest
import torch
from diffusers import WanPipeline

from reelign.errors import ReelignError
from reelign.models.load import load_model
from reelign.sampling.sample import SampleConfig, sample
from tiny_wan import KINDS, tiny_wan

PROMPTS = ["a large red circle moves left", "a small blue ring stands still"]
FRAMES, SIDE, STEPS = 9, 64, 6


@pytest.fixture(scope="module", params=[(kind, solver) for kind in KINDS for solver in ("unipc", "euler")], ids=str)
def folder(request, tmp_path_factory):
    kind, solver = request.param
    return tiny_wan(tmp_path_factory.mktemp("wan") / f"{kind}-{solver}", kind, solver), solver


@pytest.mark.parametrize("guidance", [1.0, 5.0])
def test_our_sampler_gives_the_latents_of_wan_pipeline(folder, guidance):
    path, solver = folder
    model = load_model(path, device="cpu")
    noise = torch.randn(2, *model.latent_shape(FRAMES, SIDE, SIDE), generator=torch.Generator().manual_seed(5))
    config = SampleConfig(steps=STEPS, shift=3.0, solver=solver, guidance_scale=guidance, negative_prompt="blurry")
    ours = sample(
        model, model.encode_text(PROMPTS), noise, config, negative=model.encode_text([config.negative_prompt] * 2)
    )
    pipeline = WanPipeline.from_pretrained(path)
    theirs = pipeline(
        PROMPTS,
        negative_prompt="blurry",
        height=SIDE,
        width=SIDE,
        num_frames=FRAMES,
        num_inference_steps=STEPS,
        guidance_scale=guidance,
        latents=noise.clone(),
        max_sequence_length=model.text_length,
        output_type="latent",
    ).frames
    assert torch.isfinite(theirs).all()
    assert float(theirs.std()) > 0.1
    torch.testing.assert_close(ours.latents, theirs, rtol=1e-4, atol=1e-5)
    assert ours.nfe == len(ours.latents) * STEPS * (1 if guidance == 1 else 2)


def test_decoding_is_that_of_wan_pipeline(folder):
    path, _ = folder
    model, pipeline = load_model(path, device="cpu"), WanPipeline.from_pretrained(path)
    latents = torch.randn(1, *model.latent_shape(FRAMES, SIDE, SIDE), generator=torch.Generator().manual_seed(1))
    shared = {"prompt": PROMPTS[0], "height": SIDE, "width": SIDE, "num_frames": FRAMES, "guidance_scale": 1.0}
    # One step with a denoiser that predicts nothing leaves the latents as they are.
    torch.nn.init.zeros_(pipeline.transformer.proj_out.weight)
    torch.nn.init.zeros_(pipeline.transformer.proj_out.bias)
    if pipeline.transformer_2 is not None:
        torch.nn.init.zeros_(pipeline.transformer_2.proj_out.weight)
        torch.nn.init.zeros_(pipeline.transformer_2.proj_out.bias)
    shared |= {"num_inference_steps": 1, "latents": latents.clone(), "max_sequence_length": model.text_length}
    final = pipeline(**shared, output_type="latent").frames
    theirs = (torch.from_numpy(pipeline(**shared, output_type="np").frames) * 255).round()
    ours = model.decode(final)
    assert ours.dtype == torch.uint8
    assert ours.shape == (1, FRAMES, SIDE, SIDE, 3)
    assert float((ours.float() - theirs.float()).abs().max()) <= 1


def test_two_experts_share_the_levels_at_the_boundary(tmp_path):
    model = load_model(tiny_wan(tmp_path / "a14b", "2.2-a14b"), device="cpu")
    seen = []
    for name, network in model.denoisers().items():
        network.register_forward_pre_hook(
            lambda _, args, kwargs, name=name: seen.append((name, len(kwargs["hidden_states"]))), with_kwargs=True
        )
    latents = torch.randn(4, *model.latent_shape(5, 32, 32))
    levels = torch.tensor([0.95, 0.875, 0.8, 0.1])
    conditions = model.encode_text(["a circle"] * 4)
    together = model.velocity(latents, levels, conditions)
    assert seen == [("transformer", 2), ("transformer_2", 2)]
    one_by_one = [
        model.velocity(latents[i : i + 1], levels[i : i + 1], {k: v[i : i + 1] for k, v in conditions.items()})
        for i in range(4)
    ]
    torch.testing.assert_close(together, torch.cat(one_by_one), rtol=1e-4, atol=1e-5)


def test_the_5b_layout_hands_the_network_a_timestep_for_each_token(tmp_path):
    model = load_model(tiny_wan(tmp_path / "5b", "2.2-5b"), device="cpu")
    shapes = []
    model.pipeline.transformer.register_forward_pre_hook(
        lambda _, args, kwargs: shapes.append(tuple(kwargs["timestep"].shape)), with_kwargs=True
    )
    latents = torch.randn(2, *model.latent_shape(9, 64, 64))
    model.velocity(latents, torch.tensor([0.5, 0.4]), model.encode_text(PROMPTS))
    assert shapes == [(2, 3 * 2 * 2)]


def test_a_saved_model_is_the_same_model(folder, tmp_path):
    path, _ = folder
    model = load_model(path, device="cpu")
    with torch.no_grad():
        for network in model.denoisers().values():
            network.proj_out.weight.add_(0.01)
    model.save(tmp_path / "model")
    again = load_model(tmp_path / "model", device="cpu")
    pipeline = WanPipeline.from_pretrained(tmp_path / "model")
    for name, network in model.denoisers().items():
        for key, value in network.state_dict().items():
            assert torch.equal(value, again.denoisers()[name].state_dict()[key])
            assert torch.equal(value, getattr(pipeline, name).state_dict()[key])
    assert again.native_size == model.native_size
    assert not list(tmp_path.glob(".*partial"))


def test_a_clip_that_does_not_fit_is_told_the_nearest_size(tmp_path):
    model = load_model(tiny_wan(tmp_path / "wan"), device="cpu")
    with pytest.raises(ReelignError, match="use 9 or 13"):
        model.latent_shape(10, 32, 32)
    with pytest.raises(ReelignError, match="use 32 or 48"):
        model.latent_shape(9, 40, 32)


def test_gradient_checkpointing_changes_no_gradient(tmp_path):
    model = load_model(tiny_wan(tmp_path / "wan"), device="cpu")
    network = model.pipeline.transformer
    latents = torch.randn(1, *model.latent_shape(5, 32, 32))
    conditions = model.encode_text(["a circle"])
    found = []
    for checkpointing in (False, True):
        network.requires_grad_(True).train()
        network.zero_grad()
        if checkpointing:
            network.enable_gradient_checkpointing()
        model.velocity(latents, torch.tensor([0.5]), conditions).square().mean().backward()
        found.append({name: p.grad.clone() for name, p in network.named_parameters() if p.grad is not None})
    assert found[0].keys() == found[1].keys()
    assert len(found[0]) > 20
    for name, gradient in found[0].items():
        torch.testing.assert_close(found[1][name], gradient, msg=name)

"""AdamW against torch's own, in float32 and with float32 masters under bfloat16."""

import copy
import math

import pytest
import torch
from torch import nn

from reelign.errors import ReelignError
from reelign.train.optim import OptimConfig, Optimizer


def network(dtype=torch.float32):
    torch.manual_seed(0)
    return nn.Sequential(nn.Linear(4, 8), nn.Tanh(), nn.Linear(8, 2)).to(dtype)


def test_in_float32_it_is_adamw():
    ours, theirs = network(), network()
    settings = OptimConfig(lr=1e-2, betas=(0.9, 0.99), weight_decay=0.1, max_grad_norm=0.5)
    optimizer = Optimizer(ours.named_parameters(), settings, total_steps=5)
    adamw = torch.optim.AdamW(theirs.parameters(), lr=1e-2, betas=(0.9, 0.99), weight_decay=0.1)
    for step in range(5):
        batch = torch.randn(6, 4, generator=torch.Generator().manual_seed(step))
        for model in (ours, theirs):
            model(batch).square().sum().backward()
        norm = nn.utils.clip_grad_norm_(theirs.parameters(), 0.5)
        adamw.step()
        adamw.zero_grad()
        assert optimizer.step() == pytest.approx(float(norm))
    assert all(torch.equal(a, b) for a, b in zip(ours.parameters(), theirs.parameters(), strict=True))


def test_updates_too_small_for_bfloat16_add_up_in_the_master_weights():
    model = nn.Linear(1, 1, bias=False).to(torch.bfloat16)
    with torch.no_grad():
        model.weight.fill_(1.0)
    optimizer = Optimizer(model.named_parameters(), OptimConfig(lr=1e-4), total_steps=100)
    for _ in range(100):
        model(torch.ones(1, 1, dtype=torch.bfloat16)).sum().backward()
        optimizer.step()
    assert float(model.weight.detach()) == pytest.approx(0.99, abs=0.003)
    plain = nn.Parameter(torch.ones(1, dtype=torch.bfloat16))
    adamw = torch.optim.AdamW([plain], lr=1e-4, weight_decay=0.0)
    for _ in range(100):
        plain.sum().backward()
        adamw.step()
        adamw.zero_grad()
    assert float(plain.detach()) == 1.0


@pytest.mark.parametrize("bad", [math.nan, math.inf])
def test_a_gradient_that_is_no_number_is_an_error_and_changes_nothing(bad):
    model = network()
    before = copy.deepcopy(model.state_dict())
    optimizer = Optimizer(model.named_parameters(), OptimConfig(lr=1.0), total_steps=5)
    (model(torch.randn(2, 4)).sum() * bad).backward()
    with pytest.raises(ReelignError, match="step 1"):
        optimizer.step()
    assert all(torch.equal(value, before[name]) for name, value in model.state_dict().items())


@pytest.mark.parametrize(
    ("schedule", "wanted"),
    [("constant", [0.5, 1, 1, 1, 1, 1]), ("linear", [0.5, 1, 1, 0.75, 0.5, 0.25])],
)
def test_the_rate_warms_up_and_follows_its_schedule(schedule, wanted):
    model = network()
    optimizer = Optimizer(
        model.named_parameters(), OptimConfig(lr=1.0, warmup_steps=2, schedule=schedule), total_steps=6
    )
    rates = []
    for _ in range(6):
        rates.append(optimizer.lr)
        model(torch.zeros(1, 4)).sum().backward()
        optimizer.step()
    assert rates == pytest.approx(wanted)


def test_a_cosine_ends_near_zero():
    model = network()
    optimizer = Optimizer(model.named_parameters(), OptimConfig(lr=1.0, schedule="cosine"), total_steps=4)
    rates = []
    for _ in range(4):
        rates.append(optimizer.lr)
        model(torch.zeros(1, 4)).sum().backward()
        optimizer.step()
    assert rates == pytest.approx([1.0, 0.5 + math.sqrt(0.125), 0.5, 0.5 - math.sqrt(0.125)])


def test_nothing_to_train_is_an_error():
    model = network().requires_grad_(False)
    with pytest.raises(ReelignError, match="nothing to train"):
        Optimizer(model.named_parameters(), OptimConfig(), total_steps=1)


def test_masters_of_bfloat16_weights_are_adamw_in_float32():
    """Given the gradients of the bfloat16 network, the masters go where float32 AdamW goes; the weights are rounded."""
    ours, theirs = network(torch.bfloat16), network()
    for mine, other in zip(ours.parameters(), theirs.parameters(), strict=True):
        other.data = mine.detach().float()
    optimizer = Optimizer(ours.named_parameters(), OptimConfig(lr=1e-2, weight_decay=0.1, max_grad_norm=1e9), 5)
    adamw = torch.optim.AdamW(theirs.parameters(), lr=1e-2, betas=(0.9, 0.95), weight_decay=0.1)
    for step in range(5):
        batch = torch.randn(6, 4, generator=torch.Generator().manual_seed(step)).bfloat16()
        ours(batch).float().square().sum().backward()
        for mine, other in zip(ours.parameters(), theirs.parameters(), strict=True):
            assert mine.grad is not None
            other.grad = mine.grad.float()
        optimizer.step()
        adamw.step()
    for (name, mine), other in zip(ours.named_parameters(), theirs.parameters(), strict=True):
        assert torch.equal(optimizer.masters[name], other), name
        assert torch.equal(mine, other.bfloat16()), name


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_a_bad_gradient_later_on_leaves_weights_masters_and_moments(dtype):
    model = network(dtype)
    optimizer = Optimizer(model.named_parameters(), OptimConfig(lr=1e-2), total_steps=5)
    model(torch.ones(2, 4, dtype=dtype)).square().sum().backward()
    optimizer.step()
    before = copy.deepcopy((model.state_dict(), optimizer.state_dict()))
    model(torch.ones(2, 4, dtype=dtype)).square().sum().backward()
    next(model.parameters()).grad[0, 0] = math.nan
    with pytest.raises(ReelignError, match=r"gradient norm at step 2 is nan.*weights are unchanged"):
        optimizer.step()
    for old, new in zip(before, (model.state_dict(), optimizer.state_dict()), strict=True):
        assert all(torch.equal(torch.as_tensor(value), torch.as_tensor(new[name])) for name, value in old.items())


def test_gradients_are_cleared_by_a_step():
    model = network()
    optimizer = Optimizer(model.named_parameters(), OptimConfig(), total_steps=2)
    model(torch.ones(2, 4)).sum().backward()
    optimizer.step()
    assert all(parameter.grad is None for parameter in model.parameters())


def test_frozen_weights_stay():
    model = network()
    model[0].requires_grad_(False)
    frozen = copy.deepcopy(model[0].state_dict())
    optimizer = Optimizer(model.named_parameters(), OptimConfig(lr=0.1, weight_decay=0.5), total_steps=2)
    model(torch.ones(2, 4)).sum().backward()
    optimizer.step()
    assert set(optimizer.parameters) == {"2.weight", "2.bias"}
    assert all(torch.equal(value, frozen[name]) for name, value in model[0].state_dict().items())


def test_a_layer_that_got_no_gradient_in_some_steps_goes_on_alike_after_a_resume():
    """One of two experts sees no sample in some batches: AdamW counts its updates by themselves."""

    def steps(model, optimizer, which):
        for step in which:
            layers = model if step % 2 else model[:1]
            layers(torch.full((2, 4), 0.1 * (step + 1))).square().sum().backward()
            optimizer.step()

    whole = network()
    optimizer = Optimizer(whole.named_parameters(), OptimConfig(lr=1e-2), total_steps=8)
    steps(whole, optimizer, range(5))
    resumed = copy.deepcopy(whole)
    saved = copy.deepcopy(optimizer.state_dict())
    again = Optimizer(resumed.named_parameters(), OptimConfig(lr=1e-2), total_steps=8)
    again.load_state_dict(saved)
    steps(whole, optimizer, range(5, 8))
    steps(resumed, again, range(5, 8))
    assert optimizer.lr == again.lr
    assert all(torch.equal(a, b) for a, b in zip(whole.parameters(), resumed.parameters(), strict=True))


def test_past_the_last_step_the_schedule_stays_at_its_end():
    optimizer = Optimizer(network().named_parameters(), OptimConfig(lr=1.0, schedule="linear"), total_steps=4)
    optimizer.steps_done = 9
    assert optimizer.lr == 0.0


def test_a_warm_up_as_long_as_the_run_ends_at_the_peak():
    optimizer = Optimizer(network().named_parameters(), OptimConfig(lr=1.0, warmup_steps=4), total_steps=4)
    optimizer.steps_done = 3
    assert optimizer.lr == 1.0

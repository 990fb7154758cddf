import copy
import math

import pytest
import torch
from torch import nn

from reelign.errors import ReelignError
from reelign.train.ema import Ema
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
    assert float(model.weight) == pytest.approx(0.99, abs=0.003)
    plain = nn.Parameter(torch.ones(1, dtype=torch.bfloat16))
    adamw = torch.optim.AdamW([plain], lr=1e-4, weight_decay=0.0)
    for _ in range(100):
        plain.sum().backward()
        adamw.step()
        adamw.zero_grad()
    assert float(plain) == 1.0


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


def test_the_average_follows_the_recurrence_and_is_swapped_in_and_out():
    model = nn.Linear(1, 1, bias=False)
    with torch.no_grad():
        model.weight.fill_(0.0)
    ema = Ema(model.named_parameters(), 0.5)
    expected = 0.0
    for update in range(1, 6):
        with torch.no_grad():
            model.weight.fill_(float(update))
        ema.update()
        decay = min(0.5, (1 + update) / (10 + update))
        expected = decay * expected + (1 - decay) * update
    with ema.swapped():
        assert float(model.weight) == pytest.approx(expected)
    assert float(model.weight) == 5.0
    with pytest.raises(RuntimeError), ema.swapped():
        raise RuntimeError
    assert float(model.weight) == 5.0

"""The average of the weights: its recurrence, its precision, and a swap that always swaps back."""

import pytest
import torch
from torch import nn

from reelign.train.ema import Ema


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
        assert float(model.weight.detach()) == pytest.approx(expected)
    assert float(model.weight.detach()) == 5.0
    with pytest.raises(RuntimeError), ema.swapped():
        raise RuntimeError
    assert float(model.weight.detach()) == 5.0


def follow(ema: Ema, weight: nn.Parameter, values: list[float]) -> None:
    for value in values:
        with torch.no_grad():
            weight.fill_(value)
        ema.update()


def test_before_the_first_update_the_average_is_the_starting_point():
    weight = nn.Parameter(torch.tensor([2.0]))
    ema = Ema([("w", weight)], 0.99)
    with torch.no_grad():
        weight.fill_(5.0)
    assert torch.equal(ema.average["w"], torch.tensor([2.0]))


def test_the_decay_warms_up_so_that_the_starting_point_is_forgotten():
    weight = nn.Parameter(torch.tensor([100.0]))
    ema = Ema([("w", weight)], 0.999)
    follow(ema, weight, [0.0] * 20)
    share = torch.tensor([(1 + n) / (10 + n) for n in range(1, 21)]).prod()
    torch.testing.assert_close(ema.average["w"], 100 * share[None])
    assert share < 0.01 < 0.999**20


def test_small_moves_of_bfloat16_weights_are_not_lost():
    """The average of 1 and 1 + 2^-7 (neighbours in bfloat16) lies between them, which bfloat16 could not hold."""
    weight = nn.Parameter(torch.ones(1, dtype=torch.bfloat16))
    ema = Ema([("w", weight)], 0.5)
    follow(ema, weight, [1 + 2**-7])
    assert ema.average["w"].dtype == torch.float32
    assert 1 < float(ema.average["w"]) < 1 + 2**-7


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_a_swap_gives_back_the_very_weights(dtype):
    weight = nn.Parameter(torch.randn(50, generator=torch.Generator().manual_seed(0)).to(dtype))
    before = weight.detach().clone()
    ema = Ema([("w", weight)], 0.9)
    follow(ema, weight, [0.3])
    with torch.no_grad():
        weight.copy_(before)
    average = ema.average["w"].clone()
    with ema.swapped():
        assert torch.equal(weight, average.to(dtype))
        assert not torch.equal(weight, before)
    assert torch.equal(weight, before)
    assert torch.equal(ema.average["w"], average)


def test_a_saved_average_goes_on_as_if_never_stopped():
    weight, other = nn.Parameter(torch.zeros(1)), nn.Parameter(torch.full((1,), 9.0))
    ema, resumed = Ema([("w", weight)], 0.9), Ema([("w", other)], 0.9)
    follow(ema, weight, [1.0, 4.0, 2.0])
    resumed.load_state_dict({name: torch.as_tensor(value).clone() for name, value in ema.state_dict().items()})
    follow(ema, weight, [7.0])
    follow(resumed, other, [7.0])
    assert torch.equal(ema.average["w"], resumed.average["w"])
    assert resumed.updates == 4


def test_what_is_kept_lies_between_the_start_and_the_average():
    """WiSE-FT: start + share (average - start), validated and written alike; training itself goes on from its own."""
    torch.manual_seed(0)
    network = nn.Linear(3, 2)
    start = {name: p.detach().clone() for name, p in network.named_parameters()}
    ema = Ema(network.named_parameters(), decay=0.0, interpolate=0.25)
    with torch.no_grad():
        for parameter in network.parameters():
            parameter.add_(1.0)
    ema.update()
    moved = {name: p.detach().clone() for name, p in network.named_parameters()}
    for name, value in ema.weights.items():
        torch.testing.assert_close(value, start[name] + 0.25 * (ema.average[name] - start[name]))
    with ema.swapped():
        for name, parameter in network.named_parameters():
            torch.testing.assert_close(parameter.detach(), ema.weights[name])
    for name, parameter in network.named_parameters():
        torch.testing.assert_close(parameter.detach(), moved[name], rtol=0, atol=0)


def test_an_average_that_is_kept_whole_holds_no_second_copy():
    ema = Ema(nn.Linear(3, 2).named_parameters(), decay=0.9)
    assert not ema.start
    assert ema.weights is ema.average

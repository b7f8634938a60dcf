"""Averages of weights: the formula, what is not averaged, and that nothing is lost in between."""

import pytest
import torch
from torch import Tensor, nn

from nearfar.weight_averaging import WeightAverage, load_mean, snapshot


def network() -> nn.Module:
    torch.manual_seed(0)
    model = nn.Sequential(nn.Linear(3, 4), nn.BatchNorm1d(4), nn.Linear(4, 2))
    model[2].requires_grad_(requires_grad=False)
    return model


def walk(model: nn.Module, steps: int, *averages: WeightAverage) -> list[dict[str, Tensor]]:
    """Move the weights that train, and the statistics, at random; return the states visited."""
    generator = torch.Generator().manual_seed(1)
    states = []
    for _ in range(steps):
        with torch.no_grad():
            for parameter in model.parameters():
                if parameter.requires_grad:
                    parameter += torch.randn(parameter.shape, generator=generator)
        model[1](torch.randn(5, 4, generator=generator))
        for average in averages:
            average.update()
        states.append({name: tensor.clone() for name, tensor in model.state_dict().items()})
    return states


@pytest.mark.parametrize("decay", [0.5, 0.9995])
@pytest.mark.parametrize("steps", [1, 2, 30])
def test_the_average_is_the_sum_of_all_weights_that_fade_by_decay(decay: float, steps: int) -> None:
    model = network()
    average = WeightAverage(model, decay=decay)
    states = walk(model, steps, average)
    average.apply()
    fading = [decay ** (steps - 1 - t) for t in range(steps)]
    for name, parameter in model.named_parameters():
        expected = sum(
            share / sum(fading) * state[name].double()
            for share, state in zip(fading, states, strict=True)
        )
        torch.testing.assert_close(parameter.double(), expected, rtol=1e-4, atol=1e-5)


def test_after_many_updates_it_is_the_plain_recursion() -> None:
    model, decay = network(), 0.8
    average = WeightAverage(model, decay=decay)
    first = model[0].weight.detach().clone().double()
    for state in walk(model, 200, average):
        first = decay * first + (1 - decay) * state["0.weight"].double()
    torch.testing.assert_close(average.averages["0.weight"].double(), first, rtol=1e-4, atol=1e-4)


def test_frozen_weights_and_buffers_are_those_of_the_last_update() -> None:
    model = network()
    average = WeightAverage(model, decay=0.5)
    last = walk(model, 5, average)[-1]
    average.apply()
    for name, tensor in model.state_dict().items():
        trains = name.startswith("0.") or name in ("1.weight", "1.bias")
        assert torch.equal(tensor, last[name]) != trains, name
    assert set(average.averages) == {"0.weight", "0.bias", "1.weight", "1.bias"}


def test_while_the_average_is_applied_the_weights_are_kept_to_the_bit() -> None:
    model = network()
    average = WeightAverage(model, decay=0.7)
    last = walk(model, 4, average)[-1]
    kept = {name: tensor.clone() for name, tensor in average.averages.items()}

    def fail() -> None:
        with average.applied():
            assert all(torch.equal(model.get_parameter(name), kept[name]) for name in kept)
            raise KeyError

    with pytest.raises(KeyError):
        fail()
    assert all(torch.equal(tensor, last[name]) for name, tensor in model.state_dict().items())
    assert all(torch.equal(average.averages[name], kept[name]) for name in kept)


def test_a_restored_average_goes_on_as_if_never_interrupted() -> None:
    model = network()
    whole, first = WeightAverage(model, decay=0.9), WeightAverage(model, decay=0.9)
    walk(model, 3, whole, first)
    second = WeightAverage(model, decay=0.9)
    second.load_state_dict(first.state_dict())
    walk(model, 4, whole, second)
    assert whole.num_updates == second.num_updates == 7
    for name, tensor in whole.averages.items():
        assert torch.equal(tensor, second.averages[name])


def test_without_decay_nothing_is_kept_or_changed() -> None:
    model = network()
    average = WeightAverage(model, decay=0.0)
    last = walk(model, 3, average)[-1]
    with average.applied():
        pass
    average.apply()
    assert not average.averages
    assert all(torch.equal(tensor, last[name]) for name, tensor in model.state_dict().items())


def test_a_mean_of_snapshots_is_their_mean_and_counts_are_of_the_first() -> None:
    model = network()
    snapshots = []
    for _ in range(3):
        walk(model, 1)
        snapshots.append(snapshot(model))
    walk(model, 1)
    assert not any(name.startswith("2.") for name in snapshots[0])  # frozen
    frozen = model[2].weight.clone()
    load_mean(model, snapshots)
    for name, tensor in model.state_dict().items():
        if name == "1.num_batches_tracked":
            assert tensor == snapshots[0][name] == 1
        elif not name.startswith("2."):
            mean = sum(taken[name].double() for taken in snapshots) / 3
            torch.testing.assert_close(tensor.double(), mean, rtol=1e-6, atol=1e-6)
    assert torch.equal(model[2].weight, frozen)


def test_a_snapshot_does_not_change_with_the_model() -> None:
    model = network()
    taken = snapshot(model)
    before = {name: tensor.clone() for name, tensor in taken.items()}
    walk(model, 1)
    assert all(torch.equal(tensor, before[name]) for name, tensor in taken.items())
    load_mean(model, [taken])
    assert torch.equal(model[0].weight, before["0.weight"])

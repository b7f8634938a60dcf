"""Which weights are kept, when training stops, and what they are judged by."""

import pytest
import torch
import torch.nn.functional as F
from accelerate import Accelerator
from accelerate.state import AcceleratorState
from torch import nn

from nearfar.selection import Selection, validate
from nearfar.training_clips import Collator
from tests.training import EXTRACTOR, noise_clips, tiny_model


def model_of(value: float) -> nn.Module:
    model = nn.Linear(1, 1, bias=False)
    nn.init.constant_(model.weight, value)
    return model


def noted(selection: Selection, losses: list[float]) -> Selection:
    """Note losses after updates 10, 20, ...; the weights are the numbers of the updates."""
    for i, loss in enumerate(losses):
        step = 10 * (i + 1)
        values = {"proxy_loss": loss, "proxy_accuracy": -loss}
        selection.note(model_of(step), step, values)
    return selection


@pytest.mark.parametrize("metric", ["proxy_loss", "proxy_accuracy"])
@pytest.mark.parametrize(
    ("keep_best", "steps"), [(0, []), (1, [40]), (2, [40, 20]), (9, [40, 20, 50, 10, 30])]
)
def test_the_best_are_kept_best_first_and_their_mean_is_applied(
    metric: str, keep_best: int, steps: list[int]
) -> None:
    selection = Selection(metric=metric, keep_best=keep_best)
    noted(selection, [3.0, 1.0, 4.0, 0.5, 2.0])
    assert selection.steps == steps
    model = model_of(-1.0)
    selection.apply(model)
    assert model.weight.item() == pytest.approx(sum(steps) / len(steps) if steps else -1.0)


def test_of_equals_the_earlier_one_is_kept() -> None:
    assert noted(Selection(metric="proxy_loss", keep_best=2), [1.0, 1.0, 1.0]).steps == [10, 20]


@pytest.mark.parametrize(
    ("losses", "stops"),
    [
        ([3.0, 2.0, 1.0, 0.5], False),
        ([3.0, 3.0], False),
        ([1.0, 2.0, 1.0], True),
        ([1.0, 2.0, 0.5, 0.6], False),
        ([1.0, 2.0, 0.5, 0.6, 0.7], True),
    ],
)
def test_training_stops_after_patience_validations_without_a_new_best(losses, stops) -> None:
    assert noted(Selection(metric="proxy_loss", patience=2), losses).is_exhausted is stops
    assert not noted(Selection(metric="proxy_loss"), losses).is_exhausted


def test_a_restored_selection_chooses_as_if_never_interrupted() -> None:
    losses = [3.0, 1.0, 4.0, 0.5, 2.0, 0.7]
    whole = noted(Selection(metric="proxy_loss", keep_best=3, patience=2), losses)
    first = noted(Selection(metric="proxy_loss", keep_best=3, patience=2), losses[:3])
    second = Selection(metric="proxy_loss", keep_best=3, patience=2)
    second.load_state_dict(first.state_dict())
    for i, loss in enumerate(losses[3:], start=3):
        second.note(model_of(10 * (i + 1)), 10 * (i + 1), {"proxy_loss": loss})
    assert second.steps == whole.steps == [40, 60, 20]
    assert second.is_exhausted == whole.is_exhausted
    models = [model_of(0.0), model_of(0.0)]
    for model, selection in zip(models, (whole, second), strict=True):
        selection.apply(model)
    assert torch.equal(models[0].weight, models[1].weight)


@pytest.mark.parametrize("batch_size", [1, 4, 14])
def test_loss_and_accuracy_are_means_over_clips_of_logits_without_margin(batch_size: int) -> None:
    AcceleratorState._reset_state(reset_partial_state=True)
    model, clips = tiny_model(projection="batch_norm_linear"), noise_clips()
    model.train()
    random_state = torch.get_rng_state()
    statistics = model.asd.projection.norm.running_mean.clone()
    values = validate(
        model, clips, Collator(EXTRACTOR), Accelerator(cpu=True), batch_size=batch_size
    )
    assert model.training
    assert torch.equal(torch.get_rng_state(), random_state)  # dropout goes on as it would have
    assert torch.equal(model.asd.projection.norm.running_mean, statistics)
    losses, hits = [], []
    model.eval()
    for i in range(len(clips)):
        near = torch.from_numpy(clips[i]["near"])[None]
        with torch.no_grad():
            logits = model(near).logits.double()
        losses.append(-F.log_softmax(logits, dim=1)[0, clips[i]["label"]].item())
        hits.append(logits.argmax().item() == clips[i]["label"])
    assert values["proxy_loss"] == pytest.approx(sum(losses) / 14, rel=1e-4)
    assert values["proxy_accuracy"] == pytest.approx(sum(hits) / 14)

"""The training loop: stopped anywhere and resumed, stopped early, and stopped by no number."""

from pathlib import Path

import numpy as np
import pytest
import torch
from torch import Tensor

from nearfar import training
from nearfar.checkpoints import Progress, latest_checkpoint
from nearfar.trackers import JsonLinesTracker
from nearfar.training_clips import DrawnClips
from nearfar.training_options import TrainingOptions
from tests.training import (
    NUM_CLIPS,
    assert_resumes_exactly,
    noise_clips,
    tiny_model,
    train_tiny,
)

VALIDATION = np.isin(np.arange(NUM_CLIPS), (0, 5, 10))
# 11 clips train: an epoch has 3 batches and, two at a time, 2 updates.
EVERYTHING = {
    "train_batch_size": 3,
    "gradient_accumulation_steps": 2,
    "num_train_epochs": 4,
    "learning_rate": 1e-2,
    "lr_scheduler_type": "inverse_sqrt",
    "warmup_steps": 2,
    "ema_decay": 0.9,
    "target_share": 0.5,
    "far_mixing": 0.5,
    "crop_seconds": 0.18,
    "mixup_alpha": 0.5,
    "mixup_probability": 0.7,
    "noise_probability": 0.5,
    "gain_db": 6.0,
    "time_mask": 10,
    "frequency_mask": 40,
    "pseudo_label_epochs": 1,
    "eval_steps": 3,
    "keep_best": 3,  # all of them, so that none is lost unnoticed
    "logging_steps": 100,
    "save_steps": 3,
}
DROPOUT = {"projection": "batch_norm_linear", "projection_dropout": 0.3}


def turned(labels: np.ndarray) -> np.ndarray:
    """Return other labels that depend on the former ones."""
    return (labels + np.arange(len(labels)) % 2) % 3


@pytest.mark.parametrize("update", [1, 2, 3, 5, 7])
def test_a_training_with_everything_resumes_exactly_at_any_update(
    update: int, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Of 8 updates, every second ends an epoch, and every third is validated and saved."""

    def train_again(folder: Path, *, resume: bool) -> torch.nn.Module:
        return train_tiny(
            folder,
            TrainingOptions(**EVERYTHING),
            model=tiny_model(**DROPOUT),
            validation=VALIDATION,
            relabel=turned,
            resume=resume,
        )

    assert_resumes_exactly(tmp_path, monkeypatch, update, train_again)


def test_an_early_end_is_found_again_by_a_resumed_training(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    options = TrainingOptions(
        train_batch_size=4,
        max_steps=40,
        learning_rate=0.0,  # so nothing gets better
        eval_steps=2,
        early_stopping_patience=3,
        keep_best=1,
    )

    def train_again(folder: Path, *, resume: bool) -> torch.nn.Module:
        return train_tiny(folder, options, validation=VALIDATION, resume=resume)

    assert_resumes_exactly(tmp_path, monkeypatch, 5, train_again)
    for name in ("whole", "halves"):  # the first validation is the best, then three in vain
        assert latest_checkpoint(tmp_path / name) == tmp_path / name / "step_000008"
        train_again(tmp_path / name, resume=True)
        assert latest_checkpoint(tmp_path / name) == tmp_path / name / "step_000008"


def test_the_average_is_what_training_ends_with_and_the_state_keeps_the_weights(
    tmp_path: Path,
) -> None:
    options = {"train_batch_size": 7, "max_steps": 3, "learning_rate": 1e-2}
    visited = []
    for steps in (1, 2, 3):
        given = TrainingOptions(**options | {"max_steps": steps}, lr_scheduler_type="constant")
        visited.append(train_tiny(tmp_path / str(steps), given).state_dict())
    given = TrainingOptions(**options, lr_scheduler_type="constant", ema_decay=0.75)
    averaged = train_tiny(tmp_path / "average", given).state_dict()
    shares = torch.tensor([0.75**2, 0.75, 1.0])
    shares = shares / shares.sum()
    for name, tensor in averaged.items():
        expected = sum(share * state[name] for share, state in zip(shares, visited, strict=True))
        torch.testing.assert_close(tensor, expected, rtol=1e-4, atol=1e-6, msg=name)


@pytest.mark.parametrize("target_share", [None, 0.5])
def test_every_epoch_draws_anew_in_another_order_with_other_partners(
    target_share: float | None, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    drawn: dict[int, list[tuple[int, int]]] = {}

    class Noted(DrawnClips):
        def __getitem__(self, draw: int) -> dict[str, object]:
            row = super().__getitem__(draw)
            drawn.setdefault(self.epoch, []).append((draw, row["mixup"]["file_name"]))
            return row

    monkeypatch.setattr(training, "DrawnClips", Noted)
    options = TrainingOptions(
        train_batch_size=7, num_train_epochs=3, mixup_alpha=0.5, target_share=target_share
    )
    train_tiny(tmp_path, options)
    assert sorted(drawn) == [0, 1, 2]
    orders = [[draw for draw, _ in drawn[epoch]] for epoch in range(3)]
    assert all(len(set(order)) == NUM_CLIPS for order in orders)
    assert len({tuple(order) for order in orders}) == 3
    partners = [dict(drawn[epoch]) for epoch in range(3)]
    for first, second in ((0, 1), (1, 2)):
        common = partners[first].keys() & partners[second].keys()
        assert any(partners[first][draw] != partners[second][draw] for draw in common)


def test_a_frozen_weight_stays_as_it_is_under_every_average(tmp_path: Path) -> None:
    model = tiny_model()
    model.asd.freeze_layers(1)
    before = {name: tensor.clone() for name, tensor in model.state_dict().items()}
    options = TrainingOptions(
        train_batch_size=3, max_steps=6, ema_decay=0.9, eval_steps=2, keep_best=3
    )
    train_tiny(tmp_path, options, model=model, validation=VALIDATION)
    trained = {name for name, p in model.named_parameters() if p.requires_grad}
    for name, tensor in model.state_dict().items():
        assert torch.equal(tensor, before[name]) == (name not in trained), name


def test_accumulated_batches_train_as_one_batch_of_all_their_clips(tmp_path: Path) -> None:
    common = {"max_steps": 2, "learning_rate": 1e-2, "max_grad_norm": 0.1}
    large = TrainingOptions(train_batch_size=4, **common)
    small = TrainingOptions(train_batch_size=2, gradient_accumulation_steps=2, **common)
    states = [
        train_tiny(tmp_path / str(i), options, clips=noise_clips(8)).state_dict()
        for i, options in enumerate((large, small))
    ]
    for name, tensor in states[0].items():
        if not name.endswith("k_proj.bias"):  # its gradient is rounding, whose sign AdamW follows
            torch.testing.assert_close(states[1][name], tensor, rtol=1e-3, atol=1e-5, msg=name)


class Exploding(torch.nn.Module):
    """Returns a loss, or a gradient, that is no number from a given call on."""

    def __init__(self, at: int, *, only_gradient: bool) -> None:
        super().__init__()
        self.weight = torch.nn.Parameter(torch.ones(1))
        self.calls, self.at, self.only_gradient = 0, at, only_gradient

    def forward(self, **_: Tensor) -> "Exploding":
        self.calls += 1
        self.loss = self.weight.sum()
        if self.calls >= self.at:
            self.loss = self.loss + (
                (self.weight - self.weight.detach()).abs().sqrt().sum()  # slope at 0
                if self.only_gradient
                else torch.tensor(float("inf"))
            )
        return self


@pytest.mark.parametrize(
    ("only_gradient", "what"), [(False, "loss became inf"), (True, "gradient became (nan|inf)")]
)
def test_what_is_no_number_stops_training_before_it_is_saved_and_says_where(
    only_gradient: bool, what: str, tmp_path: Path
) -> None:
    options = TrainingOptions(train_batch_size=7, max_steps=9, save_steps=2, logging_steps=50)
    where = rf"{what} in update 5 \(epoch 2.*step_000004; resume from it with a lower"
    with pytest.raises(FloatingPointError, match=where):
        train_tiny(tmp_path, options, model=Exploding(5, only_gradient=only_gradient))
    assert latest_checkpoint(tmp_path) == tmp_path / "step_000004"


@pytest.mark.parametrize(
    ("saved", "asked", "message"),
    [
        ({"ema_decay": 0.9}, {}, "trained with ema_decay=0.9, got ema_decay=0.0"),
        ({}, {"ema_decay": 0.5}, "trained with ema_decay=0.0, got ema_decay=0.5"),
        ({}, {"selection_metric": "proxy_accuracy"}, "selection_metric='proxy_loss'"),
    ],
)
def test_a_state_of_another_training_is_refused(saved, asked, message, tmp_path: Path) -> None:
    train_tiny(tmp_path, TrainingOptions(train_batch_size=7, max_steps=1, **saved))
    with pytest.raises(ValueError, match=message):
        train_tiny(tmp_path, TrainingOptions(max_steps=2, **asked), resume=True)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"keep_best": 1}, r"\['keep_best'\] came without validation clips"),
        ({"early_stopping_patience": 1}, "came without validation clips"),
        ({"pseudo_label_epochs": 1}, "there are no pseudo labels to renew"),
    ],
)
def test_an_option_that_lacks_what_it_needs_is_refused(options, message, tmp_path: Path) -> None:
    with pytest.raises(ValueError, match=message):
        train_tiny(tmp_path, TrainingOptions(**options))


def test_progress_comes_back_and_refuses_other_clips() -> None:
    progress = Progress(epoch=2, batch=5, step=31, data_digest="a")
    restored = Progress(data_digest="a")
    restored.load_state_dict(progress.state_dict())
    assert restored == progress
    with pytest.raises(ValueError, match="differ from those"):
        Progress(data_digest="b").load_state_dict(progress.state_dict())


def test_the_latest_checkpoint_is_the_one_of_most_updates(tmp_path: Path) -> None:
    assert latest_checkpoint(tmp_path) is None
    for step in (9, 100, 20):
        (tmp_path / f"step_{step:06d}").mkdir()
    (tmp_path / ".step_000200.partial").mkdir()
    assert latest_checkpoint(tmp_path) == tmp_path / "step_000100"


def test_the_tracker_appends_one_object_per_line(tmp_path: Path) -> None:
    tracker = JsonLinesTracker(tmp_path / "logs")
    tracker.store_init_configuration({"seed": 1})
    tracker.log({"loss": 2.5}, step=1)
    lines = (tmp_path / "logs" / "log.jsonl").read_text().splitlines()
    assert lines == ['{"config": {"seed": 1}}', '{"step": 1, "loss": 2.5}']

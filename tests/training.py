"""Train the smallest model on noise, by the training loop alone."""

from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from accelerate import Accelerator
from accelerate.state import AcceleratorState
from accelerate.utils import DataLoaderConfiguration, set_seed

from modeling import AsdConfig, AsdFeatureExtractor, AsdForProxyClassification
from nearfar import training
from nearfar.checkpoints import latest_checkpoint
from nearfar.training import TrainingInterruptedError, train
from nearfar.training_clips import LabelledClips
from nearfar.training_options import TrainingOptions
from tests.tiny import TINY_ENCODER

NUM_CLIPS, NUM_CLASSES = 14, 3
EXTRACTOR = AsdFeatureExtractor()


def noise_clips(
    num_clips: int = NUM_CLIPS, *, channels: tuple[str, ...] = ("near",), far: bool = True
) -> LabelledClips:
    """Return clips of noise: two machines, the last four clips of each from the target domain."""
    rng = np.random.default_rng(0)
    rows, clips = [], []
    for i in range(num_clips):
        lengths = 3000 + 400 * (i % 3)
        near, other = (0.1 * rng.standard_normal((2, lengths))).astype(np.float32)
        half = num_clips // 2
        row = {
            "machine": f"2026/{'fan' if i < half else 'valve'}/00",
            "file_name": f"clip_{i}.wav",
            "domain": "target" if i % half >= half - 4 else "source",
        }
        rows.append(row)
        clips.append(row | {"near": near, "far": other if far else None})
    labels = np.arange(num_clips * len(channels)) % NUM_CLASSES
    return LabelledClips(clips, labels.astype(np.int64), rows, channels=channels)


def tiny_model(**config: Any) -> AsdForProxyClassification:
    """Return the smallest model, always the same."""
    with torch.random.fork_rng():
        torch.manual_seed(0)
        return AsdForProxyClassification(
            AsdConfig(encoder_config=dict(TINY_ENCODER), num_labels=NUM_CLASSES, **config)
        )


def train_tiny(
    folder: Path,
    options: TrainingOptions,
    *,
    model: torch.nn.Module | None = None,
    clips: LabelledClips | None = None,
    validation: np.ndarray | None = None,
    relabel: Callable[..., Any] | None = None,
    resume: bool = False,
) -> torch.nn.Module:
    """Return a trained model; `validation` (N,) says which clips only select weights."""
    AcceleratorState._reset_state(reset_partial_state=True)
    set_seed(7)
    accelerator = Accelerator(
        cpu=True,
        gradient_accumulation_steps=options.gradient_accumulation_steps,
        dataloader_config=DataLoaderConfiguration(split_batches=True, use_seedable_sampler=True),
    )
    model = tiny_model() if model is None else model
    clips = noise_clips() if clips is None else clips
    judging = None if validation is None else clips.take(validation)
    train(
        model,
        clips if validation is None else clips.take(~validation),
        EXTRACTOR,
        options,
        accelerator,
        state_dir=folder,
        validation=judging,
        relabel=relabel,
        resume_from=latest_checkpoint(folder) if resume else None,
    )
    return model


def interrupt(monkeypatch: pytest.MonkeyPatch, update: int) -> None:
    """Let a training stop after so many updates, as if by Ctrl-C."""
    calls: list[int] = []
    stop = lambda *_, **__: calls.append(1) or len(calls) == update  # noqa: E731 - one use
    monkeypatch.setattr(training, "_any_process", stop)


def assert_resumes_exactly(
    folder: Path, monkeypatch: pytest.MonkeyPatch, update: int, train_again: Callable[..., Any]
) -> None:
    """Check that a training stopped after `update` ends as one that is not, to the bit.

    Args:
        folder: For both.
        monkeypatch: Of the test.
        update: Where it stops.
        train_again: Called as `train_tiny` with a folder and `resume`.
    """
    whole = train_again(folder / "whole", resume=False).state_dict()
    with monkeypatch.context() as patched:
        interrupt(patched, update)
        with pytest.raises(TrainingInterruptedError, match="resume_from_checkpoint latest"):
            train_again(folder / "halves", resume=False)
    halves = train_again(folder / "halves", resume=True).state_dict()
    assert whole.keys() == halves.keys()
    for name, tensor in whole.items():
        assert torch.equal(tensor, halves[name]), name

"""The systems that benchmarks judge, at toy size."""

from collections.abc import Mapping, Sequence
from pathlib import Path
from types import ModuleType
from typing import Any

import pytest

from benchmarks import small_systems
from modeling import BeatsConfig, BeatsModel
from nearfar.in_process import run_main
from tests.tiny import TINY_ENCODER


def tiny_encoder(folder: Path) -> Path:
    """Write an encoder that nothing trained, and return its folder."""
    options = {name: value for name, value in TINY_ENCODER.items() if name != "model_type"}
    BeatsModel(BeatsConfig(**options)).save_pretrained(folder)
    return folder


def small_systems_at_toy_size(
    monkeypatch: pytest.MonkeyPatch, benchmark: ModuleType, sizes: Mapping[str, Any]
) -> list[list[str]]:
    """Let a benchmark simulate clips of 1 s and train two steps; return what train.py is told.

    Args:
        monkeypatch: Of the test.
        benchmark: With `SIZES`.
        sizes: To be its sizes.
    """
    done: list[list[str]] = []

    def run_shortly(module: ModuleType, words: Sequence[object]) -> None:
        steps = [] if "--no_training" in words else ["--max_steps", 2, "--warmup_steps", 0]
        held_out = [] if "--calibration" in words else ["--held_out_share", 0.3]
        run_main(module, [*words, *steps, *held_out])
        done.append([str(word) for word in words])

    monkeypatch.setattr(small_systems, "run_main", run_shortly)
    monkeypatch.setattr(benchmark, "SIZES", {**sizes, "seconds": 1.0})
    return done

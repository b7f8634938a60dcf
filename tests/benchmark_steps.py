"""The commands of a benchmark, run in this process at toy size."""

from collections.abc import Mapping, Sequence
from pathlib import Path
from types import ModuleType
from typing import Any

import pytest

import distill
import score
import train
from data_scripts.factory.__main__ import main as simulate
from tests.scripts import run_script

SCRIPTS: dict[str, ModuleType] = {"train.py": train, "score.py": score, "distill.py": distill}


def run_steps_here(
    benchmark: ModuleType, monkeypatch: pytest.MonkeyPatch, more: Mapping[str, Sequence[str]]
) -> list[list[str]]:
    """Let a benchmark run its commands in this process.

    Args:
        benchmark: With a `run_steps`, which is replaced.
        monkeypatch: Of the test.
        more: Script's name -> words that its command lines end in.

    Returns:
        The commands that were run, and those that will be.
    """
    done: list[list[str]] = []

    def run_steps(steps: Sequence[Sequence[Any]], cache: Path) -> None:
        for step in steps:
            words = [str(word) for word in step]
            if "data_scripts.factory" in words:
                assert simulate([*words[words.index("--output_dir") :], "--num_workers", "1"]) == 0
            else:
                first = next(i for i, word in enumerate(words) if Path(word).name in SCRIPTS)
                name = Path(words[first]).name
                line = [*words[first + 1 :], *more.get(name, ())]
                run_script(SCRIPTS[name], line, monkeypatch)
            done.append(words)

    monkeypatch.setattr(benchmark, "run_steps", run_steps)
    return done

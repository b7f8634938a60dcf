"""A script's `main` called in this process, with a command line of its own."""

import json
import sys
from collections.abc import Mapping, Sequence
from types import ModuleType
from typing import Any

from accelerate.state import AcceleratorState, GradientState


def run_main(module: ModuleType, arguments: Sequence[object]) -> None:
    """Call `module.main()` as its command line would, from a fresh Accelerate state.

    A process that runs many trainings imports the libraries once. Errors pass through.

    Args:
        module: With a `main` that reads `sys.argv`, such as train.py.
        arguments: The words after the script's name.
    """
    AcceleratorState._reset_state(reset_partial_state=True)
    GradientState._reset_state()
    before = sys.argv
    sys.argv = [f"{module.__name__}.py", *map(str, arguments)]
    try:
        module.main()
    finally:
        sys.argv = before


def as_words(values: Mapping[str, Any]) -> list[str]:
    """Return a script's arguments as its command line spells them."""
    words: list[str] = []
    for name, value in values.items():
        words.append(f"--{name}")
        if isinstance(value, list):
            words += map(str, value)
        else:
            words.append(json.dumps(value) if isinstance(value, dict) else str(value))
    return words


__all__ = ["as_words", "run_main"]

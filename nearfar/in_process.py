"""A script's `main` called in this process, with a command line of its own."""

import sys
from collections.abc import Sequence
from types import ModuleType

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


__all__ = ["run_main"]

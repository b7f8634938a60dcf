"""Run the project's scripts in this process, as their command lines do."""

import sys
from collections.abc import Sequence
from types import ModuleType

import pytest
from accelerate.state import AcceleratorState

from tests.tiny import TINY_ENCODER

TINY_RECIPE = (
    *("--encoder_config", str(TINY_ENCODER).replace("'", '"')),
    *("--train_batch_size", "8", "--learning_rate", "1e-3", "--far_mixing", "0.5"),
    *("--held_out_share", "0.2", "--logging_steps", "1", "--seed", "5"),
)


def run_script(
    module: ModuleType, arguments: Sequence[object], monkeypatch: pytest.MonkeyPatch
) -> None:
    """Call a script's `main` with a command line."""
    AcceleratorState._reset_state(reset_partial_state=True)
    words = [str(argument) for argument in arguments]
    monkeypatch.setattr(sys, "argv", [f"{module.__name__}.py", *words])
    module.main()

"""Run the project's scripts in this process, as their command lines do."""

import json
import os
import subprocess
import sys
from collections.abc import Sequence
from pathlib import Path
from types import ModuleType

import pytest
import torch
from accelerate.state import AcceleratorState
from safetensors.torch import load_file

from modeling import ReferenceBank
from tests.tiny import TINY_ENCODER

TRAIN = Path(__file__).resolve().parents[1] / "train.py"
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


def weights(run: Path) -> dict[str, torch.Tensor]:
    """Return the tensors of a run folder."""
    return load_file(run / "model.safetensors")


def train_by_two_processes(arguments: Sequence[object]) -> None:
    """Run train.py by two processes of one thread each."""
    words = [sys.executable, "-m", "accelerate.commands.launch", "--multi_gpu"]
    words += ["--num_processes", 2, "--num_machines", 1, "--mixed_precision", "no"]
    words += ["--dynamo_backend", "no", TRAIN, *arguments]
    alike = {"OMP_NUM_THREADS": "1", "ACCELERATE_USE_CPU": "true"}
    subprocess.run([str(word) for word in words], check=True, env=os.environ | alike)


def assert_two_processes_train_as_one(arguments: Sequence[object], folder: Path) -> None:
    """Train by one process and by two, in folders of their own, and compare weights and banks."""
    one = [sys.executable, TRAIN, *arguments, "--output_dir", folder / "one"]
    subprocess.run(
        [str(word) for word in one], check=True, env=os.environ | {"OMP_NUM_THREADS": "1"}
    )
    train_by_two_processes([*arguments, "--output_dir", folder / "two"])
    log = (folder / "two" / "trainer_state" / "log.jsonl").read_text()
    assert json.loads(log.splitlines()[0])["config"]["num_processes"] == 2
    one_weights, two_weights = weights(folder / "one"), weights(folder / "two")
    for name, tensor in one_weights.items():
        torch.testing.assert_close(tensor, two_weights[name], rtol=1e-3, atol=1e-4, msg=name)
    banks = [ReferenceBank.from_pretrained(folder / name) for name in ("one", "two")]
    for machine in banks[0].machines:
        torch.testing.assert_close(
            *(bank.calibration_scores(machine) for bank in banks), rtol=1e-2, atol=1e-3
        )

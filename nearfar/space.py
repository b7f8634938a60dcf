"""A Space that runs the demo by itself, and the small checkpoint that it shows.

python -m nearfar.hub space DIR
python -m nearfar.hub checkpoint RUN DIR --factory DATA/factory.json
"""

import argparse
import re
import shutil
import tomllib
from pathlib import Path
from string import Template
from typing import Any

import torch
from safetensors.torch import load_file, save_file

from nearfar.files import read_json, whole_folder
from nearfar.publishing import TEXTS, without_paths

ROOT = Path(__file__).resolve().parents[1]  # of a clone
CHECKPOINT = Path("checkpoints", "quickstart")
CODE = ("app.py", "LICENSE", "assembly", "demo", "modeling", "data_scripts", "nearfar", CHECKPOINT)
CACHES = shutil.ignore_patterns("__pycache__", ".*")
WEIGHTS = "model.safetensors"
MAX_CHECKPOINT_BYTES = 5_000_000
# What the demo reads. Its code stays behind: a clone and a Space have it, and a copy would age.
CHECKPOINT_FILES = (
    "config.json",
    "metrics.json",
    "preprocessor_config.json",
    "README.md",
    "recipe.yaml",
    "reference_bank.json",
    "reference_bank.safetensors",
    "run.json",
)
CARD = Template("""\
---
title: nearfar
emoji: 👂
colorFrom: green
colorTo: blue
sdk: gradio
sdk_version: $gradio
python_version: "3.11"
app_file: app.py
license: apache-2.0
short_description: Hear whether a machine sounds as it should
tags:
- anomalous-sound-detection
- condition-monitoring
---

# nearfar

Machine-condition monitoring by sound. Give a recording of a machine, near and far; a detector that
has only ever heard normal running says how unusual it is. It shows the small checkpoint in
`$checkpoint`, trained on a simulated factory; another one: `python app.py --model RUN_OR_REPO`.
It runs without a GPU and uses one if there is one.
""")


def write_space(folder: Path, *, root: Path = ROOT) -> None:
    """Write all that a Space of the demo needs.

    Args:
        folder: Gets it; other files in it are left alone.
        root: Of a clone of the project.

    Raises:
        FileNotFoundError: `root` is no clone: an installed package has no app.py.
    """
    if missing := [str(name) for name in CODE if not (root / name).exists()]:
        raise FileNotFoundError(
            f"{root} has no {', '.join(missing)}, so it is not a clone of nearfar. Run this from "
            "one."
        )
    versions = pinned_versions(root / "constraints.txt")
    with whole_folder(folder, last="README.md") as partial:
        for name in CODE:
            target = partial / name
            target.parent.mkdir(parents=True, exist_ok=True)
            if (root / name).is_dir():
                shutil.copytree(root / name, target, ignore=CACHES)
            else:
                shutil.copyfile(root / name, target)
        requirements = "\n".join(requirements_of(root / "pyproject.toml", versions))
        (partial / "requirements.txt").write_text(f"{requirements}\n", encoding="utf-8")
        (partial / "packages.txt").write_text("ffmpeg\n", encoding="utf-8")
        card = CARD.substitute(gradio=versions["gradio"], checkpoint=CHECKPOINT.as_posix())
        (partial / "README.md").write_text(card, encoding="utf-8")


def pinned_versions(constraints: Path) -> dict[str, str]:
    """Return the versions that were tested together, by normalised name."""
    pins = {}
    for line in constraints.read_text(encoding="utf-8").splitlines():
        name, _, version = line.partition("==")
        if version and not line.startswith("#"):
            pins[_normal(name)] = version.strip()
    return pins


def requirements_of(pyproject: Path, versions: dict[str, str]) -> list[str]:
    """Return what the demo imports, in the tested versions; "factory" simulates its examples."""
    project = tomllib.loads(pyproject.read_text(encoding="utf-8"))["project"]
    extras = project["optional-dependencies"]
    wanted = [*project["dependencies"], *extras["app"], *extras["factory"]]
    names = [re.split(r"[<>=!~ \[;]", requirement, maxsplit=1)[0] for requirement in wanted]
    return [f"{name}=={versions[_normal(name)]}" for name in names]


def write_checkpoint(run: Path, folder: Path, *, factory: Path | None = None) -> None:
    """Write a run folder in half precision, without code and without paths of this computer.

    config.json keeps its dtype, float32: on loading the weights become that again.

    Args:
        run: A run folder of kind "model".
        folder: Gets the checkpoint.
        factory: The `factory.json` of the simulated factory that the run was trained on; with it
            the demo simulates the references and examples that it plays.

    Raises:
        FileNotFoundError: It is no complete run folder.
        ValueError: It is larger than 5 MB.
    """
    if missing := [name for name in (*CHECKPOINT_FILES, WEIGHTS) if not (run / name).is_file()]:
        raise FileNotFoundError(f"{run} has no {', '.join(missing)}. Give a complete run folder.")
    tensors = {
        name: tensor.half() if tensor.dtype == torch.float32 else tensor
        for name, tensor in load_file(run / WEIGHTS).items()
    }
    with whole_folder(folder, last="run.json") as partial:
        for name in CHECKPOINT_FILES:
            if name.endswith(TEXTS):
                text = without_paths((run / name).read_text(encoding="utf-8"), name)
                (partial / name).write_text(text, encoding="utf-8")
            else:
                shutil.copyfile(run / name, partial / name)
        save_file(tensors, partial / WEIGHTS, metadata={"format": "pt"})
        if factory is not None:
            read_json(factory)
            shutil.copyfile(factory, partial / "factory.json")
        size = sum(path.stat().st_size for path in partial.iterdir())
        if size > MAX_CHECKPOINT_BYTES:
            raise ValueError(
                f"{run} takes {size} bytes in half precision, at most {MAX_CHECKPOINT_BYTES} are "
                "shipped. Train a smaller model."
            )


def add_commands(commands: Any) -> None:  # noqa: ANN401 - argparse's own type is private
    """Add `space` and `checkpoint` to a command line.

    Args:
        commands: What `ArgumentParser.add_subparsers` returns; the chosen one's `run` is a function
            of the parsed arguments, and returns what is to be printed.
    """
    space = commands.add_parser("space", help="write a Space of the demo, from a clone")
    space.add_argument("folder", type=Path, help="gets README, requirements, code and checkpoint")
    space.set_defaults(run=_space)
    checkpoint = commands.add_parser("checkpoint", help="write a small run folder that can ship")
    checkpoint.add_argument("model", type=Path, help="a run folder")
    checkpoint.add_argument("folder", type=Path, help="gets the checkpoint")
    checkpoint.add_argument("--factory", type=Path, help="factory.json of its training clips")
    checkpoint.set_defaults(run=_checkpoint)


def _space(args: argparse.Namespace) -> str:
    write_space(args.folder)
    return f"written to {args.folder}"


def _checkpoint(args: argparse.Namespace) -> str:
    write_checkpoint(args.model, args.folder, factory=args.factory)
    return f"written to {args.folder}"


def _normal(name: str) -> str:
    return re.sub(r"[-_.]+", "-", name.strip()).lower()

"""Reproduce what others published of DCASE 2026 Task 2: train, score, and print ours beside theirs.

python reproduce.py --data_dir DATA --checkpoints DIR --output_dir runs/reproduced

First the training-free ladder, then every published system whose recipe is there, each for every
seed by train.py and score.py. What is done is not done again, and an interrupted training goes on.
Without --checkpoints the encoders have random weights, and the figures say nothing of any report.
"""

import logging
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Literal

import score
import train
from nearfar.arguments import check_names, parse_arguments, script
from nearfar.autoencoder_states import STATE_PREFIX
from nearfar.checkpoints import latest_checkpoint
from nearfar.evaluation import METRICS_FILE, read_metrics
from nearfar.files import read_json, read_yaml, write_json
from nearfar.hub import RUN_FILE
from nearfar.in_process import as_words, run_main
from nearfar.published import PublishedSystem, checkpoint_names, read_published
from nearfar.reproduction import format_ladder, format_system

logger = logging.getLogger("nearfar.reproduce")

RECIPES = Path(__file__).resolve().parent / "recipes"
FUSIONS = ("fusion", "feature_fusion")
SMALL = {"hidden_size": 64, "num_attention_heads": 2, "intermediate_size": 128}
DEEPEST = 12  # layer that a recipe scores


@dataclass(kw_only=True)
class ReproduceArguments:
    """Arguments of reproduce.py."""

    data_dir: Path = field(metadata={"help": "Recordings of 2026, in the official layout."})
    output_dir: Path = field(
        default=Path("runs/reproduced"), metadata={"help": "Holds runs and scores of every seed."}
    )
    checkpoints: Path | None = field(
        default=None,
        metadata={"help": "Folder of the encoders' weights, named as their authors name them."},
    )
    systems: list[str] | None = field(
        default=None, metadata={"help": "Of the published ones; None: the ladder, then all."}
    )
    seeds: list[int] = field(
        default_factory=lambda: [0],
        metadata={"help": "Of training; what is not trained takes the first."},
    )
    random_size: Literal["full", "small"] = field(
        default="full", metadata={"help": "Of encoders without checkpoints."}
    )
    values: dict | str | None = field(
        default=None, metadata={"help": "Arguments of train.py for all, as JSON; they win."}
    )
    num_resamples: int = field(default=1000, metadata={"help": "Of the bootstrap."})
    print_only: bool = field(default=False, metadata={"help": "Only print what is done."})

    @property
    def weights(self) -> str:
        """Say where the encoders' weights come from, and what else is not as published."""
        told = f"weights of {self.checkpoints}"
        if self.checkpoints is None:
            told = f"RANDOM WEIGHTS ({self.random_size} size): COMPARE NOTHING"
        return told + (f"; NOT THE RECIPE'S: {self.values}" if self.values else "")


def main() -> None:
    """Do what is not done, then print the tables."""
    logging.basicConfig(format="%(message)s", level=logging.INFO)
    args = parse_arguments(ReproduceArguments)
    published = read_published()
    check_names("systems", args.systems or [], published)
    chosen = [published[name] for name in args.systems or published]
    there = [system for system in chosen if recipe_path(system.recipe).is_file()]
    for system in chosen:
        if system not in there:
            logger.warning("%s: there is no recipe %s.", system.name, system.recipe)
    plan = {system.name: Plan.of(system, args) for system in there}
    failures = []
    for system in there:
        for seed in [] if args.print_only else plan[system.name].seeds:
            try:
                do(system, plan[system.name], seed, args)
            except (ValueError, FloatingPointError, FileNotFoundError) as error:
                failures.append(f"{system.name}, seed {seed}: {error}")
                logger.error("%s", failures[-1])
    results = {
        name: [
            read_metrics(score_folder(args, seed, name))
            for seed in of.seeds
            if (score_folder(args, seed, name) / METRICS_FILE).is_file()
        ]
        for name, of in plan.items()
    }
    print_tables(there, {name: found for name, found in results.items() if found}, args)
    if failures:
        raise ValueError("These were not reproduced. " + " ".join(failures))


@dataclass(frozen=True)
class Plan:
    """How a published system is trained.

    Attributes:
        values: Arguments of train.py beside paths and seed.
        seeds: One where nothing is trained.
    """

    values: dict[str, Any]
    seeds: list[int]

    @classmethod
    def of(cls, system: PublishedSystem, args: ReproduceArguments) -> "Plan":
        """Plan a system.

        Raises:
            FileNotFoundError: An encoder's weights are not among the checkpoints.
        """
        recipe = read_recipe_file(system.recipe)
        own: Any = args.values or {}
        values = encoder_values(recipe, args) | system.values | own
        frozen = {**recipe, **values}.get("no_training", False)
        return cls(values, args.seeds[:1] if frozen else args.seeds)


def encoder_values(recipe: Mapping[str, Any], args: ReproduceArguments) -> dict[str, Any]:
    """Return the arguments of train.py that give a recipe its encoder, or its members theirs."""
    kind = recipe.get("kind", "model")
    if kind == "autoencoder":
        return {}
    if kind in FUSIONS:
        members = [read_recipe_file(member["recipe"]) for member in recipe["members"]]
        types = [t for t in map(encoder_type, members) if t is not None]
        if args.checkpoints is None:
            return {"encoder_configs": {t: random_config(t, DEEPEST, args) for t in types}}
        found = {t: checkpoint(t, args.checkpoints) for t in types}
        return {"encoder_checkpoints": [f"{t}={path}" for t, path in found.items()]}
    model_type = encoder_type(recipe) or "nearfar_beats"
    if args.checkpoints is None:
        depth = max(recipe.get("layers") or [2])
        return {"encoder_config": random_config(model_type, depth, args)}
    return {"encoder_checkpoint": str(checkpoint(model_type, args.checkpoints))}


def encoder_type(recipe: Mapping[str, Any]) -> str | None:
    """Return the model type that a recipe takes; None for one without an encoder."""
    if recipe.get("kind") == "autoencoder":
        return None
    config = recipe.get("encoder_config") or {}
    return str(recipe.get("encoder_type") or config.get("model_type") or "nearfar_beats")


def random_config(model_type: str, depth: int, args: ReproduceArguments) -> dict[str, Any]:
    """Return the configuration of an encoder with new weights, at the size asked for."""
    small = SMALL | {"num_hidden_layers": depth} if args.random_size == "small" else {}
    return {"model_type": model_type} | small


def checkpoint(model_type: str, folder: Path) -> Path:
    """Return where the weights of an encoder are.

    Raises:
        FileNotFoundError: They are not there.
    """
    names = checkpoint_names()[model_type]
    found = [folder / name for name in names if (folder / name).exists()]
    if not found:
        raise FileNotFoundError(
            f"There are no weights of {model_type} in {folder}. Put one of {names} there, or leave "
            "--checkpoints out for random weights."
        )
    return found[0].resolve()


def do(system: PublishedSystem, plan: Plan, seed: int, args: ReproduceArguments) -> None:
    """Train and score a system, as far as that is not done.

    Raises:
        ValueError: What is there was made with other values.
    """
    folder = args.output_dir / f"seed_{seed:03d}"
    runs, run, scores = folder / "runs", folder / "runs" / system.name, folder / "scores"
    check_setting(folder / "settings" / f"{system.name}.json", plan.values)
    words: list[Any] = ["--recipe", recipe_path(system.recipe), "--data_dir", args.data_dir]
    words += ["--output_dir", run, "--seed", seed, *as_words(plan.values)]
    if read_recipe_file(system.recipe).get("kind") in FUSIONS:
        words += ["--members_dir", runs]  # a member may have been trained as a system of its own
    state = run / "trainer_state"
    if latest_checkpoint(state) is not None or any(state.glob(f"{STATE_PREFIX}*")):
        words += ["--resume_from_checkpoint", "latest"]
    if not (run / RUN_FILE).is_file():
        logger.info("Training %s, seed %d", system.name, seed)
        run_main(train, words)
    if not (scores / system.name / METRICS_FILE).is_file():
        words = ["--model", run, "--data_dir", args.data_dir, "--output_dir", scores / system.name]
        run_main(score, [*words, "--num_resamples", args.num_resamples])


def check_setting(path: Path, values: Mapping[str, Any]) -> None:
    """Note what a system is made with, or compare it with what was noted.

    Raises:
        ValueError: They differ.
    """
    if not path.is_file():
        path.parent.mkdir(parents=True, exist_ok=True)
        write_json(path, dict(values))
    elif (found := read_json(path)) != values:
        raise ValueError(
            f"{path.stem} was made with {found}, but asked for is {dict(values)}. Choose another "
            "output_dir."
        )


def recipe_path(name: str) -> Path:
    """Return where a recipe is."""
    return RECIPES / f"{name}.yaml"


def read_recipe_file(name: str) -> dict[str, Any]:
    """Return a recipe's own values."""
    path = recipe_path(name)
    values: dict[str, Any] = read_yaml(path, f"Recipe {path}")
    return values


def score_folder(args: ReproduceArguments, seed: int, name: str) -> Path:
    """Return where the scores of a system are."""
    return args.output_dir / f"seed_{seed:03d}" / "scores" / name


def print_tables(
    systems: list[PublishedSystem], results: Mapping[str, list[Any]], args: ReproduceArguments
) -> None:
    """Print the ladder, then a table for each system that is done."""
    rungs = [system for system in systems if system.is_rung]
    if any(rung.name in results for rung in rungs):
        print("\n".join(format_ladder(rungs, results, args.weights)), end="\n\n")  # noqa: T201 - the script's answer
    for system in systems:
        if system.name in results and not system.is_rung:
            print("\n".join(format_system(system, results[system.name], args.weights)), end="\n\n")  # noqa: T201 - as above


if __name__ == "__main__":
    script(main)

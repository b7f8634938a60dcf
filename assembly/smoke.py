"""`--smoke`: a recipe at a tiny size, from clips to scores, to see that all of it runs."""

import dataclasses
import logging
from collections.abc import Mapping, Sequence
from typing import Any

from accelerate import Accelerator, PartialState

from assembly.scorers import load_scorer, load_test_clips, scored_by
from assembly.tiny_encoders import TINY_ENCODERS
from data_scripts.factory import simulate_factory
from nearfar.evaluation import evaluate_scores
from nearfar.metric_tables import format_metrics
from nearfar.score_folder import write_scores
from nearfar.training_arguments import TrainArguments

logger = logging.getLogger(__name__)

MOST = {  # kind -> of these a smoke run takes no more
    "model": {
        "max_steps": 2,
        "train_batch_size": 4,
        "gradient_accumulation_steps": 2,
        "warmup_steps": 1,
    },
    "autoencoder": {"num_train_epochs": 1},
    "fusion": {"num_trials": 4},
    "feature_fusion": {},
}
LEAST = {  # and of these no less
    "model": {"held_out_share": 0.2},
    "autoencoder": {"held_out_share": 0.2},
    "fusion": {"search_step": 0.25},
    "feature_fusion": {},
}


def prepare_smoke(args: TrainArguments, given: Mapping[str, Any]) -> TrainArguments:
    """Return the arguments at a tiny size, with simulated clips where no data_dir is given.

    Args:
        args: With `smoke`.
        given: What stands on the command line, which wins over the tiny size.
    """
    logger.warning(
        "SMOKE RUN of %s: a tiny model and a few updates. Its score means nothing.",
        args.recipe or "no recipe",
    )
    args = at_tiny_size(args, given)
    if args.data_dir is None:
        args.data_dir = args.state_dir / "smoke_data"
        with PartialState().main_process_first():
            simulate_factory(
                args.data_dir,
                num_machines=2,
                eval_machines=1,
                seed=0,
                source_train=10,
                target_train=4,
                test_per_group=3,
                seconds=1.0,
            )
    return args


def at_tiny_size(args: TrainArguments, given: Mapping[str, Any]) -> TrainArguments:
    """Return arguments with a tiny encoder from scratch, few updates, and the rest as they are."""
    values: dict[str, Any] = {"smoke": True}
    for name, most in MOST[args.kind].items():
        value = getattr(args, name)
        values[name] = most if value is None else min(most, value)
    for name, least in LEAST[args.kind].items():
        values[name] = max(least, getattr(args, name))
    if args.kind == "model" and args.encoder_checkpoint is None:
        values["encoder_config"] = tiny_encoder(args)
    if "data_dir" not in given and args.kind in ("model", "autoencoder"):
        # What is simulated is of 2026, and of one rate.
        values |= {"year": 2026, "machine_types": None, "resample": False}
    changed = {name: value for name, value in values.items() if name not in given}
    return dataclasses.replace(args, **changed)


def tiny_encoder(args: TrainArguments) -> dict[str, Any]:
    """Return the configuration of the smallest encoder of the recipe's type, as deep as it must."""
    config: Any = args.encoder_config or {}
    model_type = args.encoder_type or config.get("model_type") or "nearfar_beats"
    return _deep_enough(
        TINY_ENCODERS[model_type], [*(args.layers or [0]), args.trainable_layers or 0]
    )


def _deep_enough(config: dict[str, Any], layers: Sequence[int]) -> dict[str, Any]:
    """Return an encoder's configuration with as many layers as are asked for."""
    if (wrapped := config.get("encoder_config")) is not None:
        return config | {"encoder_config": _deep_enough(wrapped, layers)}
    return config | {"num_hidden_layers": max(config["num_hidden_layers"], *layers)}


def score_smoke(args: TrainArguments) -> None:
    """Score the run folder of a smoke run on its development clips, and print the table."""
    accelerator = Accelerator()
    scorer = load_scorer(args.output_dir)
    clips = load_test_clips(args.data_dir, accelerator, year=scorer.recipe["year"])
    scored, _ = scored_by(scorer, clips, accelerator)
    if not accelerator.is_main_process:
        return
    metrics = evaluate_scores(
        scored.table,
        num_resamples=0,
        num_calibration={name: len(c.file_names) for name, c in scored.calibrations.items()},
    )
    write_scores(args.output_dir / "scores", scored, metrics | scored.provenance)
    print("SMOKE RUN: these scores mean nothing.", format_metrics(metrics, "table"), sep="\n")  # noqa: T201 - the script's answer

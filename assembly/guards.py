"""The guard that a recipe asks for."""

import logging

from accelerate import Accelerator

from assembly.training_clips import Clips
from modeling import FRONT_ENDS, AsdFeatureExtractor
from nearfar.guard import GuardDecision, fit_guard
from nearfar.training_arguments import TrainArguments

logger = logging.getLogger(__name__)


def guard_machines(
    args: TrainArguments,
    references: Clips,
    feature_extractor: AsdFeatureExtractor,
    accelerator: Accelerator,
) -> dict[str, GuardDecision]:
    """Return the guard's decision for each machine; none without a guard."""
    if args.guard == "none":
        return {}
    options: dict[str, object] = dict(args.front_end_options or {})  # type: ignore[arg-type] # no str: read as JSON
    guard = fit_guard(
        FRONT_ENDS[args.front_end](**options),
        references,
        feature_extractor,
        batch_size=args.extraction_batch_size,
        accelerator=accelerator,
        num_workers=args.dataloader_num_workers,
    )
    for machine, decision in guard.items():
        logger.info("%s: front-end strength %g", machine, decision.strength)
    return guard

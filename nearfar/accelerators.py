"""The accelerator that a training runs on, and its random states."""

import logging
import os

import torch
from accelerate import Accelerator
from accelerate.utils import DataLoaderConfiguration, set_seed

from nearfar.trackers import JsonLinesTracker
from nearfar.training_arguments import TrainArguments


def seed_all(args: TrainArguments) -> None:
    """Seed what draws at random, and make the rest repeatable if asked for."""
    if args.deterministic:
        os.environ.setdefault("CUBLAS_WORKSPACE_CONFIG", ":4096:8")  # else cuBLAS is refused
        torch.backends.cudnn.benchmark = False
    set_seed(args.seed, deterministic=args.deterministic)


def build_accelerator(args: TrainArguments) -> Accelerator:
    """Return an accelerator that splits each batch over the processes and logs to `report_to`."""
    trackers = [
        JsonLinesTracker(args.state_dir) if name == "jsonl" else name for name in args.report_to
    ]
    accelerator = Accelerator(
        gradient_accumulation_steps=args.gradient_accumulation_steps,
        mixed_precision=args.mixed_precision,
        log_with=trackers,
        project_dir=args.state_dir,
        dataloader_config=DataLoaderConfiguration(split_batches=True, use_seedable_sampler=True),
    )
    missing = set(args.report_to) - {"jsonl"} - {str(tracker) for tracker in accelerator.log_with}
    if missing:
        raise ValueError(f"report_to: {sorted(missing)} cannot be used; is the package installed?")
    accelerator.init_trackers("nearfar", {"num_processes": accelerator.num_processes})
    logging.getLogger().setLevel(logging.INFO if accelerator.is_main_process else logging.ERROR)
    return accelerator


def close(accelerator: Accelerator) -> None:
    """End a training's log, and let all processes see its files; another training may follow."""
    for tracker in accelerator.trackers:
        tracker.finish()
    accelerator.wait_for_everyone()

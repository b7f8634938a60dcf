"""The members of a fusion: what each is trained with, and whether that was done before."""

import logging
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import yaml
from accelerate import PartialState
from huggingface_hub.errors import StrictDataclassError

from assembly.encoders import build_encoder
from assembly.models import asd_config
from assembly.smoke import at_tiny_size
from assembly.training_clips import training_clips
from modeling.calibration import check_rule
from nearfar.arguments import checked_values, read_recipe
from nearfar.autoencoder_states import STATE_PREFIX
from nearfar.checkpoints import latest_checkpoint
from nearfar.evaluation import METRICS_FILE
from nearfar.files import read_json
from nearfar.fusion_options import Member, by_encoder_type, read_members
from nearfar.hub import RUN_FILE, read_run
from nearfar.proxy_labels import ProxyLabels
from nearfar.training_arguments import (
    FUSION_ARGUMENTS,
    LOCAL_ARGUMENTS,
    TrainArguments,
    check_arguments,
    resolved_recipe,
)

logger = logging.getLogger(__name__)

# Of no account for what a member becomes.
_BOOKKEEPING = {
    *("logging_steps", "save_steps", "dataloader_num_workers", "extraction_batch_size"),
    *("activation_checkpointing", "clip_memory_gib", "smoke"),
}
_SHARED_LOCALS = ("data_dir", "report_to", "num_proc")


def member_arguments(args: TrainArguments, given: Mapping[str, Any]) -> list[TrainArguments]:
    """Return the arguments that each member of a fusion is trained with.

    A member's base recipe is read from the folder of the fusion's recipe; its overrides win over
    that, and the command line over both. Its run folder is `members_dir`/<name>, where other
    fusions may have put it, or a folder below the fusion's `trainer_state`.

    Args:
        args: The fusion's.
        given: What stands on the command line itself.

    Raises:
        ValueError: The members are described wrongly, or options of one make no sense together.
        FileNotFoundError: A base recipe is not there.
    """
    folder = args.recipe.parent if args.recipe is not None else Path()
    own = {*LOCAL_ARGUMENTS, *FUSION_ARGUMENTS[args.kind], "smoke"}
    over = {name: value for name, value in given.items() if name not in own}
    over |= {name: getattr(args, name) for name in _SHARED_LOCALS}
    members = read_members(args.members or [], folder)
    values = [
        read_recipe(TrainArguments, member.recipe)
        | checked_values(TrainArguments, member.overrides, f"Member {member.name}")
        | over
        for member in members
    ]
    types = [_encoder_type(value) for value in values]
    checkpoints = by_encoder_type(args.encoder_checkpoints or [], types)
    configs: Any = args.encoder_configs or {}
    made = []
    for member, value, encoder_type in zip(members, values, types, strict=True):
        output_dir = (args.members_dir or args.state_dir) / member.name
        if encoder_type in checkpoints:
            value["encoder_checkpoint"] = checkpoints[encoder_type]
        elif encoder_type in configs:
            value["encoder_config"] = configs[encoder_type] | {"model_type": encoder_type}
        one = TrainArguments(**value | {"recipe": member.recipe, "output_dir": output_dir})
        if args.smoke:
            one = at_tiny_size(one, given)
        made.append(_checked(args, member, one))
    _check_models(made)
    return made


def is_finished(args: TrainArguments) -> bool:
    """Return whether a member's run folder is complete; it must be what would be trained now.

    Raises:
        ValueError: It was trained with other values, or on other clips.
    """
    if not (args.output_dir / RUN_FILE).is_file():
        return False
    read_run(args.output_dir)
    found = yaml.safe_load((args.output_dir / "recipe.yaml").read_text(encoding="utf-8"))
    defaults = resolved_recipe(TrainArguments(output_dir=Path()))
    due = resolved_recipe(args)
    for name in due.keys() - _BOOKKEEPING:
        if found.get(name, defaults[name]) != due[name]:
            raise ValueError(
                f"{args.output_dir} was trained with {name}={found.get(name, defaults[name])!r}, "
                f"but this fusion's member has {due[name]!r}. Remove it, or give another "
                "members_dir."
            )
    digest = read_json(args.output_dir / METRICS_FILE).get("clips_digest")
    if digest != training_clips(args, PartialState()).digest():
        raise ValueError(
            f"{args.output_dir} was trained on other clips than those of {args.data_dir}. Give "
            "the same data_dir, remove it, or give another members_dir."
        )
    logger.info("%s is trained already.", args.output_dir)
    return True


def _checked(fusion: TrainArguments, member: Member, args: TrainArguments) -> TrainArguments:
    """Return a member's arguments, ready to train, or raise ValueError beginning with its name."""
    kinds = ("model",) if fusion.kind == "feature_fusion" else ("model", "autoencoder")
    if args.kind not in kinds:
        raise ValueError(
            f"Member {member.name}: its kind is {args.kind!r}, but members of a {fusion.kind!r} "
            f"are of {list(kinds)}."
        )
    try:
        check_arguments(args)
        check_rule(args.threshold, args.threshold_quantile)
    except ValueError as error:
        raise ValueError(f"Member {member.name}: {error}") from error
    saved = any(args.state_dir.glob(f"{STATE_PREFIX}*")) or latest_checkpoint(args.state_dir)
    if fusion.resume_from_checkpoint is not None and saved:
        args.resume_from_checkpoint = "latest"
    return args


def _check_models(members: Sequence[TrainArguments]) -> None:
    """Load every encoder and describe every model once, lest the last member fail after hours.

    Raises:
        ValueError: A checkpoint is of another kind, or an option unknown to its part.
    """
    encoders: dict[str, Any] = {}
    labels = ProxyLabels(("a", "b"), np.arange(2), np.ones(2, dtype=bool))
    for member in members:
        if member.kind != "model":
            continue
        source = f"{member.encoder_checkpoint} {member.encoder_config} {member.encoder_type}"
        try:
            if source not in encoders:
                encoders[source] = build_encoder(member)
            asd_config(member, encoders[source], labels)
        except (ValueError, StrictDataclassError) as error:
            said = error.__cause__ if isinstance(error, StrictDataclassError) else error
            raise ValueError(f"Member {member.output_dir.name}: {said}") from error


def _encoder_type(values: Mapping[str, Any]) -> str:
    config = values.get("encoder_config") or {}
    return str(values.get("encoder_type") or config.get("model_type") or "nearfar_beats")

"""The autoencoders of an official baseline."""

from collections.abc import Sequence
from functools import partial
from typing import Any

from accelerate import Accelerator

from assembly.training_clips import Clips
from modeling import (
    AsdFeatureExtractor,
    AutoencoderConfig,
    AutoencoderModel,
    ReconstructionNetwork,
)
from nearfar.autoencoder_states import saved_states
from nearfar.autoencoder_training import train_autoencoders
from nearfar.clip_streams import ClipStream
from nearfar.training_arguments import TrainArguments


def fit_autoencoders(
    args: TrainArguments,
    references: Clips,
    rows: Sequence[dict[str, Any]],
    accelerator: Accelerator,
) -> tuple[AutoencoderModel, AsdFeatureExtractor]:
    """Train the networks of every machine, but for those of the states asked for."""
    assert not isinstance(references, ClipStream)  # check_kind
    resume_from = saved_states(args.state_dir, args.resume_from_checkpoint)
    options: Any = args.autoencoder_config or {}
    possible = set(AutoencoderConfig.__annotations__) - {"machines", "channels", "format_version"}
    if unknown := sorted(set(options) - possible):
        raise ValueError(f"autoencoder_config {unknown} are unknown; there are {sorted(possible)}.")
    machines = sorted({row["machine"] for row in rows})
    config = AutoencoderConfig(machines=machines, channels=args.channels, **options)
    model = AutoencoderModel(config)
    feature_extractor = AsdFeatureExtractor(
        sampling_rate=config.sampling_rate,
        min_num_samples=model.min_num_samples,
        peak_normalize=args.peak_normalize,
    )
    train_autoencoders(
        model,
        partial(ReconstructionNetwork, config),
        references,
        rows,
        feature_extractor,
        args,
        accelerator,
        extraction_batch_size=args.extraction_batch_size,
        state_dir=args.state_dir,
        resume_from=resume_from,
    )
    return model, feature_extractor

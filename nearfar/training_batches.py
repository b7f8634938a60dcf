"""What training hears of a batch: one clip after another goes through the same augmentations."""

from functools import partial
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from nearfar.augmentation import (
    Stream,
    add_noise,
    clip_beta,
    clip_uniform,
    crop,
    fit_length,
    mask_spans,
    mix_clips,
    mix_far,
    piece_in_a_loop,
    white_noise,
)
from nearfar.training_options import TrainingOptions

WAVEFORMS = {"near_values", "far_values", "clean_values"}  # of a batch; the last in distillation


def augmented(
    model: nn.Module, batch: dict[str, Any], options: TrainingOptions, epoch: int
) -> dict[str, Tensor]:
    """Return a batch as training hears it.

    In this order: far mixed into near; a piece of each clip; mixup; noise on near; gain on both
    channels; masks for the spectrogram. The front end runs on each whole clip, before it is cut or
    mixed with another. What is drawn depends on seed, epoch and clip alone.

    Args:
        model: An `AsdForProxyClassification`.
        batch: Of a `Collator`, with `draw` (batch,).
        options: Their augmentations and seed are read.
        epoch: Counted from 0.
    """
    batch = dict(batch)
    draws = batch.pop("draw").cpu()  # once: random numbers are drawn there
    mixup, noise = batch.pop("mixup", None), batch.pop("noise", None)
    batch = _heard(model, batch, draws, options, epoch, offset=0)
    if options.mixup_alpha and options.mixup_probability:
        config: Any = model.config
        batch["labels"] = F.one_hot(batch["labels"], config.num_labels).float()
        if mixup is not None:
            _mix(model, batch, draws, mixup, options, epoch)
    if options.noise_probability:
        batch["near_values"] = _in_noise(batch, draws, noise, options, epoch)
    if options.gain_db:
        gain_db = clip_uniform(
            draws,
            low=-options.gain_db,
            high=options.gain_db,
            seed=options.seed,
            epoch=epoch,
            stream=Stream.GAIN,
        )
        gain = (10.0 ** (gain_db / 20)).to(batch["near_values"])[:, None]
        for name in WAVEFORMS & batch.keys():
            batch[name] = gain * batch[name]
    if options.time_mask or options.frequency_mask:
        batch["spectrogram_masks"] = _masks(draws, options, epoch).to(batch["near_values"].device)
    return batch


def _heard(
    model: nn.Module,
    batch: dict[str, Any],
    draws: Tensor,
    options: TrainingOptions,
    epoch: int,
    *,
    offset: int,
) -> dict[str, Any]:
    """Return clips as they are heard alone: far mixed in, through the front end, cut."""
    batch = dict(batch)
    draw = partial(clip_uniform, draws, seed=options.seed, epoch=epoch)
    if options.far_mixing:
        gain = draw(low=0.0, high=options.far_mixing, stream=offset + Stream.FAR_MIXING)
        batch["near_values"] = mix_far(batch["near_values"], batch["far_values"], gain)
    _clean_first(model, batch, options)
    if options.crop_seconds is None:
        return batch
    config: Any = model.config
    lengths = batch["attention_mask"].sum(dim=1)
    num_samples = min(int(options.crop_seconds * config.sampling_rate), int(lengths.max()))
    latest = (lengths - num_samples).clamp_min(0)
    place = draw(low=0.0, high=1.0, stream=offset + Stream.CROP).to(latest.device)
    start = (place * (latest + 1)).long().minimum(latest)
    for name in (WAVEFORMS | {"attention_mask"}) & batch.keys():
        batch[name] = crop(batch[name], start, num_samples)
    return batch


def _clean_first(model: nn.Module, batch: dict[str, Any], options: TrainingOptions) -> None:
    """Run the front end now where something follows that it must not hear."""
    follow = {
        "crop_seconds": options.crop_seconds is not None,
        "mixup_alpha": options.mixup_alpha,
        "noise_probability": options.noise_probability,
    }
    given = [name for name, value in follow.items() if value]
    if not given:
        return
    config: Any = model.config
    if config.front_end == "near":
        return
    asd: Any = model.asd
    if list(config.channels) != ["near"] or asd.reads_far:
        raise ValueError(
            f"{' and '.join(given)} cannot follow front_end={config.front_end!r} where channels="
            f"{list(config.channels)} are heard{' with far beside them' if asd.reads_far else ''}. "
            f"Leave {'it' if len(given) == 1 else 'them'} out, or train a model of "
            "channels=['near'] whose encoder is not noise-aware."
        )
    with torch.no_grad():
        heard = asd.waveforms(
            batch["near_values"],
            batch["far_values"],
            batch["attention_mask"],
            batch.pop("front_end_strength", None),
        )
    batch["near_values"] = heard["near"]
    batch["far_values"] = torch.zeros_like(heard["near"])  # the front end is done


def _mix(
    model: nn.Module,
    batch: dict[str, Any],
    draws: Tensor,
    mixup: dict[str, Any],
    options: TrainingOptions,
    epoch: int,
) -> None:
    """Mix partners into the clips that have one, and their classes into the soft labels."""
    position = mixup["position"]
    own = draws[position.cpu()]
    partner = _heard(model, mixup, own, options, epoch, offset=Stream.OF_MIXUP)
    share = clip_beta(
        own, alpha=options.mixup_alpha, seed=options.seed, epoch=epoch, stream=Stream.MIXUP_SHARE
    )
    sound = batch["attention_mask"][position]
    for name in ("near_values", "far_values"):
        values = fit_length(partner[name], sound.shape[1]) * sound
        batch[name] = mix_clips(batch[name], values, position, share)
    classes = F.one_hot(mixup["labels"], batch["labels"].shape[1]).float()
    batch["labels"] = mix_clips(batch["labels"], classes, position, share)


def _in_noise(
    batch: dict[str, Any],
    draws: Tensor,
    noise: dict[str, Tensor] | None,
    options: TrainingOptions,
    epoch: int,
) -> Tensor:
    """Return near with noise at one of the ratios, for the clips that are drawn."""
    near = batch["near_values"]
    draw = partial(clip_uniform, low=0.0, high=1.0, seed=options.seed, epoch=epoch)
    ratios = torch.tensor(options.noise_snrs_db)
    chosen = (draw(draws, stream=Stream.NOISE_LEVEL) * len(ratios)).long()
    snr_db = ratios[chosen.clamp_max(len(ratios) - 1)]
    added = torch.zeros_like(near)
    if options.noise_source == "white":
        noisy = draw(draws, stream=Stream.NOISE) < options.noise_probability
        if bool(noisy.any()):
            samples = white_noise(draws[noisy], near.shape[1], seed=options.seed, epoch=epoch)
            added[noisy.to(near.device)] = samples.to(near)
    elif noise is not None:
        position = noise["position"]
        own = draws[position.cpu()]
        lengths = noise["attention_mask"].sum(dim=1)
        place = draw(own, stream=Stream.OF_NOISE + Stream.CROP).to(near.device)
        start = (place * lengths).long()
        added[position] = piece_in_a_loop(noise["values"], start, lengths, near.shape[1])
    return add_noise(near, added, snr_db, batch["attention_mask"])


def _masks(draws: Tensor, options: TrainingOptions, epoch: int) -> Tensor:
    """Return where the spectrograms are masked, (batch, 4), as a model takes it."""
    spans = partial(
        mask_spans, draws, probability=options.mask_probability, seed=options.seed, epoch=epoch
    )
    time = spans(options.time_mask, stream=Stream.TIME_MASK)
    frequency = spans(options.frequency_mask, stream=Stream.FREQUENCY_MASK)
    return torch.cat([time, frequency], dim=1)

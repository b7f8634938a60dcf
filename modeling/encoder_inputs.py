"""What every encoder refuses about its inputs, in the same words."""

from collections.abc import Callable

import torch
from torch import Tensor


def check_one_input(
    encoder: str, input_values: Tensor | None, input_features: Tensor | None
) -> None:
    """Raise ValueError unless exactly one of waveform and spectrogram was given.

    Args:
        encoder: The class that asks, by name.
        input_values: The waveform.
        input_features: The spectrogram.
    """
    if (input_values is None) == (input_features is None):
        came = "neither" if input_values is None else "both"
        raise ValueError(
            f"{encoder} got {came} of input_values and input_features. Give one: the waveform, "
            "or what spectrogram() makes of it."
        )


def check_waveform(input_values: Tensor) -> None:
    """Raise ValueError unless a waveform is (batch, num_samples)."""
    if input_values.ndim != 2:
        raise ValueError(
            f"input_values have the shape {tuple(input_values.shape)}, expected "
            "(batch, num_samples). Add the batch axis, and give one channel only."
        )


def check_spectrogram(input_features: Tensor, num_bins: int) -> None:
    """Raise ValueError unless a spectrogram is (batch, frames, num_bins)."""
    if input_features.ndim != 3 or input_features.shape[2] != num_bins:
        raise ValueError(
            f"input_features have the shape {tuple(input_features.shape)}, expected "
            f"(batch, frames, {num_bins}). Take them from spectrogram()."
        )


def check_num_samples(
    num_samples: int, *, needed: int, sampling_rate: int, subject: str = "Clips"
) -> None:
    """Raise ValueError if clips are shorter than what one patch needs, in samples."""
    if num_samples < needed:
        raise ValueError(
            f"{subject} of {num_samples} samples came; one patch needs {needed} "
            f"({needed / sampling_rate:.3f} s). Leave shorter clips out, or pad them with zeros "
            "that count as sound."
        )


def check_attention_mask(
    attention_mask: Tensor,
    clips: Tensor,
    *,
    fits: Callable[[int], bool],
    needed: int,
    sampling_rate: int,
) -> None:
    """Raise ValueError if a mask has another shape, holes, or a clip shorter than one patch.

    Args:
        attention_mask: (batch, num_samples), 1 where there is sound.
        clips: The waveform (batch, num_samples) or spectrogram (batch, frames, bins) it is for.
        fits: Whether a mask of so many samples is one of these clips.
        needed: Samples that one patch needs.
        sampling_rate: In hertz.
    """
    if (
        attention_mask.ndim != 2
        or attention_mask.shape[0] != clips.shape[0]
        or not fits(attention_mask.shape[1])
    ):
        unit = "samples" if clips.ndim == 2 else "frames"
        raise ValueError(
            f"attention_mask has the shape {tuple(attention_mask.shape)}, which does not fit "
            f"{clips.shape[0]} clips of {clips.shape[1]} {unit}. Give one value per sample of the "
            "padded waveform."
        )
    if torch.compiler.is_compiling():
        return  # what follows reads values, which would break the graph
    sound = attention_mask.bool()
    shortest, holes = torch.stack(
        [sound.sum(dim=1).amin(), (sound[:, 1:] > sound[:, :-1]).sum()]
    ).tolist()
    if holes:
        raise ValueError("attention_mask has a 0 before a 1. Padding belongs at the end of a clip.")
    check_num_samples(shortest, needed=needed, sampling_rate=sampling_rate, subject="A clip")


def check_far(far_values: Tensor | None, has_far: Tensor | None) -> None:
    """Raise ValueError where the far channel is to be encoded and there is none."""
    missing = "every clip" if far_values is None else None
    if has_far is not None and not bool(has_far.all()):
        missing = f"clips {(~has_far).nonzero().flatten().tolist()} of the batch"
    if missing:
        raise ValueError(
            f"This model's config.channels need the far channel, but far_values is missing for "
            f"{missing}. Pass it, or take a model of channels=['near']."
        )


__all__ = [
    "check_attention_mask",
    "check_far",
    "check_num_samples",
    "check_one_input",
    "check_spectrogram",
    "check_waveform",
]

"""The leakage guard: does a front end help to hear this machine, or does it eat its sound?

Far hears the machine, too, so whatever cancels far may cancel the machine. That alone is no reason
to refuse: what counts is whether the machine stands out better afterwards. The guard answers from
the waveforms of a machine's references alone, which are normal, and never from test clips.
"""

from typing import Any, NamedTuple

import numpy as np
import torch
import torch.nn.functional as F
from accelerate import Accelerator
from numpy.typing import NDArray
from scipy.ndimage import median_filter
from scipy.special import logsumexp
from torch import Tensor, nn

from nearfar.embeddings import extract_embeddings

MIN_CONTRAST_GAIN = 0.0  # tuned on the simulated factories 40 to 45
N_FFT, HOP_LENGTH = 1024, 512  # of the spectrum that lines are looked for in
LINE_DB, LINE_WIDTH = 6.0, 31  # how far a line stands out of the median of so many bins
POWER_FLOOR = 1e-12
DECIBELS = 10 / np.log(10)  # per unit of a natural logarithm of power


class GuardDecision(NamedTuple):
    """What the guard decided about one machine, and what it measured on the references.

    Attributes:
        strength: Front-end strength, 1 to clean the machine's clips, 0 to fall back to near.
        contrast_near: See `contrast`, of the near channel.
        contrast_cleaned: The same after the front end.
        taken_db: How much of near's energy the front end took, in dB; the mean over clips.
        lines_taken_db: The same on near's stable spectral lines alone; None where there are none.
    """

    strength: float
    contrast_near: float
    contrast_cleaned: float
    taken_db: float
    lines_taken_db: float | None


class _Spectra(NamedTuple):
    embedding: Tensor


class HeardSpectra(nn.Module):
    """The mean spectra of near and of what a front end makes of it, as `extract_embeddings` reads.

    Args:
        front_end: Of `modeling.FRONT_ENDS`.
        spectrogram: With `time_average` and `num_mel_bins`, a `KaldiLogMel`.
    """

    def __init__(self, front_end: nn.Module, spectrogram: Any) -> None:  # noqa: ANN401 - as above
        super().__init__()
        self.front_end = front_end
        self.spectrogram = spectrogram
        self.anchor = nn.Parameter(Tensor(0))  # gives the module a device

    def forward(
        self,
        near_values: Tensor,
        far_values: Tensor,
        attention_mask: Tensor,
        **_: Any,  # noqa: ANN401
    ) -> _Spectra:
        """Return (batch, 2, 1, num_mel_bins + bins): near and cleaned, log-mel and log power."""
        lengths = attention_mask.sum(dim=1)
        cleaned = self.front_end(near_values, far_values, lengths)
        heard = [
            torch.cat([self.spectrogram.time_average(x, lengths), log_power(x, lengths)], dim=1)
            for x in (near_values.float(), cleaned)
        ]
        return _Spectra(torch.stack(heard, dim=1)[:, :, None])


def fit_guard(
    front_end: nn.Module,
    spectrogram: Any,  # noqa: ANN401 - a KaldiLogMel, which nearfar must not import
    clips: Any,  # noqa: ANN401 - as extract_embeddings takes them
    feature_extractor: Any,  # noqa: ANN401 - as above
    *,
    batch_size: int = 8,
    accelerator: Accelerator | None = None,
    num_workers: int = 0,
) -> dict[str, GuardDecision]:
    """Decide for each machine whether a front end may clean its clips.

    Args:
        front_end: Of `modeling.FRONT_ENDS`.
        spectrogram: A `KaldiLogMel`.
        clips: The references, decoded; two or more per machine.
        feature_extractor: Batches them.
        batch_size: Clips cleaned at once.
        accelerator: As for `extract_embeddings`; every process returns all decisions.
        num_workers: Processes that decode ahead.

    Raises:
        ValueError: There are no clips, a machine has only one, or one is no normal clip.
    """
    with torch.random.fork_rng(devices=[]):  # a loader draws a number that training would miss
        table = extract_embeddings(
            HeardSpectra(front_end, spectrogram),
            clips,
            feature_extractor,
            batch_size=batch_size,
            accelerator=accelerator,
            num_workers=num_workers,
            description="guard",
        )
    if (table.conditions == "anomaly").any():
        raise ValueError("The guard got anomalies. Fit it on references, normal clips, only.")
    return {
        machine: decide(*np.moveaxis(table.select(machine).embedding[:, :, 0], 1, 0), machine)
        for machine in table.machine_names
    }


def decide(
    near: NDArray[np.float32], cleaned: NDArray[np.float32], machine: str = "machine"
) -> GuardDecision:
    """Decide about one machine.

    Args:
        near: (N, size) spectra of its references as `HeardSpectra` gives them, natural logarithms.
        cleaned: The same after the front end.
        machine: Its name, for messages.

    Raises:
        ValueError: There are fewer than two clips.
    """
    if len(near) < 2:
        raise ValueError(
            f"{machine}: the guard got {len(near)} reference clip, but compares clips with each "
            "other. Give at least 2, or train without --guard."
        )
    bins = N_FFT // 2 + 1
    contrasts = contrast(near[:, :-bins]), contrast(cleaned[:, :-bins])
    powers = near[:, -bins:].astype(np.float64), cleaned[:, -bins:].astype(np.float64)
    lines = stable_lines(powers[0])
    return GuardDecision(
        strength=float(contrasts[1] - contrasts[0] >= MIN_CONTRAST_GAIN),
        contrast_near=contrasts[0],
        contrast_cleaned=contrasts[1],
        taken_db=level_drop(*powers),
        lines_taken_db=level_drop(*(p[:, lines] for p in powers)) if lines.any() else None,
    )


def contrast(spectra: NDArray[np.float32]) -> float:
    """Return how far a changed machine would lie from the references, relative to another normal.

    A changed machine is a reference whose spectrum is displaced by one band: that changes the lines
    and resonances of a machine, which both microphones hear along the same paths, and hardly a
    broad noise. With D the distance of such a spectrum to the nearest other reference, and d that
    of the reference itself, the contrast is the mean of ln(D / d) over the references. It falls
    when a front end takes the machine, and rises when it takes what differs from clip to clip.

    Args:
        spectra: (N, bands) time-averaged log-mel spectra of normal clips, N at least 2.
    """
    heard = spectra[:, np.ptp(spectra, axis=0) > 0].astype(np.float64)  # a band may be empty
    here, displaced = torch.from_numpy(heard[:, 1:]), torch.from_numpy(heard[:, :-1])
    itself, changed = (nearest_other(x, here).clamp_min(1e-6) for x in (here, displaced))
    return float((changed / itself).log().mean())


def nearest_other(clips: Tensor, references: Tensor) -> Tensor:
    """Return the distance of each clip to the nearest reference but its own, (N,)."""
    distances: Tensor = torch.cdist(clips, references)
    return distances.fill_diagonal_(torch.inf).amin(1)


def stable_lines(log_powers: NDArray[np.float64]) -> NDArray[np.bool_]:
    """Return which bins (bins,) hold a line that stands out in the mean of all clips' spectra.

    Args:
        log_powers: (N, bins) natural logarithms of power.
    """
    profile = log_powers.mean(axis=0)
    excess: NDArray[np.float64] = profile - median_filter(profile, LINE_WIDTH)
    return DECIBELS * excess > LINE_DB


def level_drop(before: NDArray[np.float64], after: NDArray[np.float64]) -> float:
    """Return by how much clips' total level falls, in dB, the mean over clips.

    Args:
        before: (N, bins) natural logarithms of power.
        after: Same shape.
    """
    drop = logsumexp(before, axis=1) - logsumexp(after, axis=1)
    return float(DECIBELS * drop.mean())


def log_power(waveform: Tensor, lengths: Tensor) -> Tensor:
    """Return the logarithm of the mean power spectrum over each clip's own frames, (batch, bins).

    Args:
        waveform: (batch, num_samples), zero behind each clip's end.
        lengths: (batch,) int64.
    """
    waveform = F.pad(waveform, (0, max(0, N_FFT - waveform.shape[1])))
    frames = waveform.unfold(1, N_FFT, HOP_LENGTH)
    spectrum = torch.fft.rfft(frames * torch.hann_window(N_FFT, device=waveform.device))
    power = spectrum.real.square() + spectrum.imag.square()  # (B, T, bins)
    counts = (1 + (lengths - N_FFT).clamp_min(0) // HOP_LENGTH)[:, None]  # (B, 1)
    valid = power.new_ones(power.shape[:2]).cumsum(dim=1) <= counts
    return ((power * valid[..., None]).sum(dim=1) / counts + POWER_FLOOR).log()

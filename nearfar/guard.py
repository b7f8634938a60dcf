"""The leakage guard: does a front end help to hear this machine, or does it eat its sound?

Far hears the machine, too, so whatever cancels far may cancel the machine. What a machine has and
noise has not are stable spectral lines: a front end that takes more of them than of the rest of the
spectrum listens to the machine. That alone is no reason to refuse, as the noise may fall by more,
and with it what tells one normal clip from another: such a front end has to make up for the lines
by bringing the machine's normal clips nearer to each other. The guard measures both on a machine's
references alone, which are normal, and never on test clips.
"""

from typing import Any, NamedTuple

import numpy as np
import torch
import torch.nn.functional as F
from accelerate import Accelerator
from numpy.typing import NDArray
from scipy.ndimage import median_filter
from scipy.special import logsumexp
from sklearn.neighbors import NearestNeighbors
from torch import Tensor, nn

from nearfar.embeddings import Embedded, extract_embeddings

# Chosen on simulated machines of preset challenge, in halls as they are and 10 dB quieter: factory
# seeds 40 to 44 with `complex_least_squares`, `block_nlms` and `lms` (4 x 70 test clips), 60 to 67
# with all front ends (4 x 25), 110 to 119 with the first two in quieter halls (4 x 70). Frozen.
MIN_APPROACH = 0.05  # share of their distance by which clips have to come nearer
ROUNDING_DB = 0.01  # more of the lines than of the rest is more than that
N_FFT, HOP_LENGTH = 1024, 512  # of the spectrum that lines are looked for in
LINE_WIDTH = 31  # bins whose median a line stands out of
LINE_EXCESS, REST_EXCESS = 1.0, 0.5  # more than the one is a line, less than the other is none
POWER_FLOOR = 1e-12
NUM_BANDS = 32  # on the mel scale, of the spectra whose distance is taken
MEL_BREAK = 700 / 8_000  # where the mel scale bends, as a share of the highest frequency at 16 kHz
MIN_DISTANCE = 1e-6  # of two recordings of the same
DECIBELS = 10 / np.log(10)  # per unit of a natural logarithm of power, as the two excesses are


class GuardDecision(NamedTuple):
    """What the guard decided about one machine, and what it measured on the references.

    Attributes:
        strength: Front-end strength, 1 to clean the machine's clips, 0 to fall back to near.
        taken_db: How much of near's energy the front end took, in dB; the mean over clips.
        lines_taken_db: How much of near's stable spectral lines, the more a line stands out the
            more it counts; None where there are none.
        rest_taken_db: How much of the spectrum beside the lines.
        distance_change: By which share the distance from a clip to the nearest other one changed,
            in log spectra by bands; the geometric mean over clips. None with a single clip.
    """

    strength: float
    taken_db: float
    lines_taken_db: float | None
    rest_taken_db: float
    distance_change: float | None


class HeardSpectra(nn.Module):
    """The mean spectra of near and of what a front end makes of it, as `extract_embeddings` reads.

    Args:
        front_end: Of `modeling.FRONT_ENDS`.
    """

    def __init__(self, front_end: nn.Module) -> None:
        super().__init__()
        self.front_end = front_end

    def forward(
        self,
        near_values: Tensor,
        far_values: Tensor,
        attention_mask: Tensor,
        **_: Any,  # noqa: ANN401
    ) -> Embedded:
        """Return (batch, 2, 1, bins): logarithms of the power of near and cleaned."""
        lengths = attention_mask.sum(dim=1)
        cleaned = self.front_end(near_values, far_values, lengths)
        heard = [log_power(x, lengths) for x in (near_values.float(), cleaned)]
        return Embedded(torch.stack(heard, dim=1)[:, :, None])


def fit_guard(
    front_end: nn.Module,
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
        clips: The references, decoded.
        feature_extractor: Batches them.
        batch_size: Clips cleaned at once.
        accelerator: As for `extract_embeddings`; every process returns all decisions.
        num_workers: Processes that decode ahead.

    Raises:
        ValueError: There are no clips, or one is no normal clip.
    """
    with torch.random.fork_rng(devices=[]):  # a loader draws a number that training would miss
        table = extract_embeddings(
            HeardSpectra(front_end),
            clips,
            feature_extractor,
            batch_size=batch_size,
            accelerator=accelerator,
            num_workers=num_workers,
            description="guard",
        )
    if (table.conditions == "anomaly").any():
        raise ValueError("The guard got anomalies. Fit it on references, normal clips, only.")
    decisions = {}
    for machine in table.machine_names:
        near, cleaned = table.select(machine).embedding[:, :, 0].swapaxes(0, 1)
        decisions[machine] = decide(near.astype(np.float64), cleaned.astype(np.float64))
    return decisions


def decide(near: NDArray[np.float64], cleaned: NDArray[np.float64]) -> GuardDecision:
    """Decide about one machine.

    A machine without lines keeps its front end: there is nothing to see it eaten by.
    One that takes more of the lines than of the rest has to reach `MIN_APPROACH`.

    Args:
        near: (N, bins) natural logarithms of the power spectra of its references.
        cleaned: The same after the front end.
    """
    profile = near.mean(axis=0)
    excess = profile - median_filter(profile, LINE_WIDTH)
    weight = np.maximum(excess - LINE_EXCESS, 0)
    taken = DECIBELS * (near - cleaned).mean(axis=0)  # (bins,)
    rest = float(taken[excess < REST_EXCESS].mean())
    lines = float(weight @ taken / weight.sum()) if weight.any() else None
    change = distance_change(near, cleaned)
    eats = lines is not None and lines - rest > ROUNDING_DB
    pays = change is not None and change < -MIN_APPROACH
    return GuardDecision(
        strength=float(pays or not eats),
        taken_db=level_drop(near, cleaned),
        lines_taken_db=lines,
        rest_taken_db=rest,
        distance_change=change,
    )


def distance_change(before: NDArray[np.float64], after: NDArray[np.float64]) -> float | None:
    """Return by which share the clips' distances to their nearest other clip change.

    Args:
        before: (N, bins) natural logarithms of power.
        after: Same shape.

    Returns:
        -0.1 where they are a tenth nearer, in the geometric mean; None if N is 1.
    """
    if len(before) < 2:
        return None
    distances = []
    for spectra in (before, after):
        search = NearestNeighbors(n_neighbors=1).fit(by_band(spectra))
        distances.append(search.kneighbors()[0][:, 0])  # of each clip to another one
    logarithms = np.log(np.maximum(distances, MIN_DISTANCE))
    return float(np.expm1((logarithms[1] - logarithms[0]).mean()))


def by_band(spectra: NDArray[np.float64]) -> NDArray[np.float64]:
    """Return the power in bands of equal width on the mel scale, (N, bins) -> (N, `NUM_BANDS`)."""
    warped = np.linspace(0, np.log1p(1 / MEL_BREAK), NUM_BANDS, endpoint=False)
    starts = np.round(MEL_BREAK * np.expm1(warped) * (spectra.shape[1] - 1)).astype(int)
    bands: NDArray[np.float64] = np.logaddexp.reduceat(spectra, starts, axis=1)
    return bands


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
    mean: Tensor = (power * valid[..., None]).sum(dim=1) / counts
    return (mean + POWER_FLOOR).log()

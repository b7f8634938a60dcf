"""Pictures of scores and of sound; matplotlib objects without a window, saved as PNG."""

from collections.abc import Mapping
from pathlib import Path

import numpy as np
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.figure import Figure
from numpy.typing import NDArray
from sklearn.metrics import roc_curve

COLORS = {
    ("normal", "source"): "#0072b2",  # Okabe and Ito's palette: told apart by colour-blind eyes
    ("normal", "target"): "#56b4e9",
    ("normal", None): "#0072b2",
    ("anomaly", "source"): "#d55e00",
    ("anomaly", "target"): "#e69f00",
    ("anomaly", None): "#d55e00",
}


def plot_machine(
    path: Path,
    machine: str,
    anomaly_scores: NDArray[np.float64],
    conditions: NDArray[np.object_],
    domains: NDArray[np.object_],
    *,
    threshold: float | None = None,
    max_fpr: float = 0.1,
) -> None:
    """Draw a machine's score histograms by condition and domain, and its ROC where there is one.

    Args:
        path: PNG to write.
        machine: Full name, the title.
        anomaly_scores: (N,).
        conditions: (N,) "normal", "anomaly" or None.
        domains: (N,) "source", "target" or None.
        threshold: Drawn as a line if given.
        max_fpr: Right end of the shaded pAUC region.
    """
    figure = Figure(figsize=(9, 3.6), layout="constrained")
    FigureCanvasAgg(figure)
    histogram, roc = figure.subplots(1, 2)
    figure.suptitle(machine)
    groups = sorted(set(zip(conditions, domains, strict=True)), key=str)
    bins = np.histogram_bin_edges(anomaly_scores, bins=30).tolist()
    for condition, domain in groups:
        chosen = (conditions == condition) & (domains == domain)
        name = " ".join(part for part in (domain, condition or "unlabelled") if part)
        color = COLORS.get((condition, domain), "#777777")
        histogram.hist(
            anomaly_scores[chosen],
            bins=bins,
            histtype="step",
            linewidth=1.8,
            linestyle="-" if condition == "normal" else "--",
            color=color,
            label=f"{name} ({chosen.sum()})",
        )
    if threshold is not None:
        histogram.axvline(threshold, color="black", linewidth=1, label="threshold")
    histogram.set_xlabel("anomaly score")
    histogram.set_ylabel("clips")
    histogram.legend(fontsize="small")

    known = np.array([condition is not None for condition in conditions])
    anomalous = conditions == "anomaly"
    for domain in sorted({domain for domain in domains if domain}) or [None]:
        kept = known & (anomalous | (domains == domain))
        if 0 < anomalous[kept].sum() < kept.sum():
            fpr, tpr, _ = roc_curve(anomalous[kept], anomaly_scores[kept])
            color = COLORS[("normal", domain)]
            roc.plot(fpr, tpr, color=color, label=f"{domain or 'all'} normals")
    if roc.lines:
        roc.axvspan(0, max_fpr, color="#dddddd", label=f"pAUC region, FPR up to {max_fpr}")
        roc.plot([0, 1], [0, 1], color="#777777", linewidth=1, linestyle=":")
        roc.legend(fontsize="small", loc="lower right")
    else:
        text = "no ROC: it needs labelled normal\nand anomalous clips"
        roc.text(0.5, 0.5, text, ha="center", va="center")
    roc.set(xlabel="false-positive rate", ylabel="true-positive rate", xlim=(0, 1), ylim=(0, 1.01))
    path.parent.mkdir(parents=True, exist_ok=True)
    figure.savefig(path, dpi=110)


def plot_spectrograms(
    path: Path,
    title: str,
    waveforms: Mapping[str, NDArray[np.float32]],
    *,
    sampling_rate: int,
    range_db: float = 60.0,
) -> None:
    """Draw the spectrograms of waveforms side by side, on one scale of colours.

    Args:
        path: PNG to write.
        title: Of the whole figure.
        waveforms: Name of each panel -> (num_samples,), at least 512 samples.
        sampling_rate: Hz.
        range_db: From the loudest point of all panels down to what is black.
    """
    figure = Figure(figsize=(3.0 * len(waveforms), 3.0), layout="constrained")
    FigureCanvasAgg(figure)
    panels = figure.subplots(1, len(waveforms), sharey=True, squeeze=False)[0]
    figure.suptitle(title)
    levels = {name: power_db(waveform) for name, waveform in waveforms.items()}
    loudest = max(level.max() for level in levels.values())
    for panel, (name, level) in zip(panels, levels.items(), strict=True):
        image = panel.imshow(
            level,
            origin="lower",
            aspect="auto",
            extent=(0, len(waveforms[name]) / sampling_rate, 0, sampling_rate / 2_000),
            vmin=loudest - range_db,
            vmax=loudest,
            cmap="magma",
        )
        panel.set(title=name, xlabel="seconds")
    panels[0].set_ylabel("kHz")
    figure.colorbar(image, ax=panels, label="dB")
    path.parent.mkdir(parents=True, exist_ok=True)
    figure.savefig(path, dpi=110)


def power_db(waveform: NDArray[np.float32], n_fft: int = 512) -> NDArray[np.float64]:
    """Return the power spectrogram in dB, (bins, frames): Hann windows, half overlapping."""
    frames = np.lib.stride_tricks.sliding_window_view(waveform, n_fft)[:: n_fft // 2]
    spectrum = np.fft.rfft(frames * np.hanning(n_fft), axis=1).T
    decibels: NDArray[np.float64] = 10 * np.log10(np.abs(spectrum) ** 2 + 1e-12)
    return decibels

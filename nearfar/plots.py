"""Pictures of scores and of sound; matplotlib objects without a window, saved as PNG."""

from collections.abc import Mapping
from pathlib import Path

import numpy as np
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.figure import Figure
from numpy.typing import NDArray
from scipy.stats import binom
from sklearn.metrics import roc_curve

COLORS = {
    ("normal", "source"): "#0072b2",  # Okabe and Ito's palette: told apart by colour-blind eyes
    ("normal", "target"): "#56b4e9",
    ("normal", None): "#0072b2",
    ("anomaly", "source"): "#d55e00",
    ("anomaly", "target"): "#e69f00",
    ("anomaly", None): "#d55e00",
}


def plot_calibration(
    path: Path,
    p_values: NDArray[np.float64],
    conditions: NDArray[np.object_],
    domains: NDArray[np.object_],
    *,
    title: str = "false alarms",
) -> bool:
    """Draw how often normal test clips have a p-value up to each nominal rate, by domain.

    On the diagonal p-values say what they claim; above it there are too many false alarms. The band
    holds 95 % of such curves if the p-values are right, at each rate by itself.

    Args:
        path: PNG to write.
        p_values: (N,) NaN where unknown.
        conditions: (N,) "normal", "anomaly" or None; only normal clips count.
        domains: (N,) "source", "target" or None.
        title: Above the plot.

    Returns:
        Whether there was anything to draw; without normal clips with a p-value nothing is written.
    """
    counted = (conditions == "normal") & ~np.isnan(p_values)
    if not counted.any():
        return False
    figure = Figure(figsize=(4.5, 4.2), layout="constrained")
    FigureCanvasAgg(figure)
    axes = figure.subplots()
    rates = np.linspace(0, 1, 201)
    for domain in sorted(set(domains[counted].tolist()), key=str):
        values = np.sort(p_values[counted & (domains == domain)])
        measured = np.searchsorted(values, rates, side="right") / len(values)
        color = COLORS.get(("normal", domain), "#777777")
        name = f"{domain or 'unknown'} ({len(values)})"
        axes.step(rates, measured, where="post", color=color, label=name)
        low, high = (binom.ppf(q, len(values), rates) / len(values) for q in (0.025, 0.975))
        axes.fill_between(rates, low, high, color=color, alpha=0.15, linewidth=0)
    axes.plot([0, 1], [0, 1], color="#777777", linewidth=1, linestyle=":")
    axes.set(xlabel="nominal false-alarm rate", ylabel="measured", xlim=(0, 1), ylim=(0, 1.01))
    axes.set_title(title)
    axes.legend(fontsize="small", loc="lower right")
    path.parent.mkdir(parents=True, exist_ok=True)
    figure.savefig(path, dpi=110)
    return True


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
        fpr, tpr, _ = roc_curve(anomalous[known], anomaly_scores[known])
        # The pAUC is over all clips; the curve is cut between two thresholds, at max_fpr.
        edge = np.interp(max_fpr, fpr, tpr)
        inside = fpr < max_fpr
        roc.fill_between(
            np.r_[fpr[inside], max_fpr],
            np.r_[tpr[inside], edge],
            color="#bbbbbb",
            label=f"pAUC region, FPR up to {max_fpr}",
        )
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

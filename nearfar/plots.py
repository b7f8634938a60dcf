"""Pictures of scores and of sound; matplotlib objects without a window, saved as PNG."""

from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any, Literal, NamedTuple

import numpy as np
from matplotlib.axes import Axes
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.colors import LinearSegmentedColormap, to_rgb
from matplotlib.figure import Figure
from numpy.typing import NDArray
from scipy.stats import binom, theilslopes
from sklearn.decomposition import PCA
from sklearn.manifold import TSNE
from sklearn.metrics import roc_curve

COLORS = {
    ("normal", "source"): "#0072b2",  # Okabe and Ito's palette: told apart by colour-blind eyes
    ("normal", "target"): "#56b4e9",
    ("normal", None): "#0072b2",
    ("anomaly", "source"): "#d55e00",
    ("anomaly", "target"): "#e69f00",
    ("anomaly", None): "#d55e00",
}
UNKNOWN_COLOR = "#777777"
MARKERS = {"normal": "o", "anomaly": "X", None: "s"}  # nothing rests on colour alone
TREND_CLIPS = 1000
TICKS_KHZ = (0.125, 0.25, 0.5, 1, 2, 4, 8, 16)

Projection = Literal["pca", "tsne"]


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
    figure = _new_figure(4.5, 4.2)
    axes = figure.subplots()
    rates = np.linspace(0, 1, 201)
    for domain in sorted(set(domains[counted].tolist()), key=str):
        values = np.sort(p_values[counted & (domains == domain)])
        measured = np.searchsorted(values, rates, side="right") / len(values)
        color = COLORS.get(("normal", domain), UNKNOWN_COLOR)
        name = f"{domain or 'unknown'} ({len(values)})"
        axes.step(rates, measured, where="post", color=color, label=name)
        low, high = (binom.ppf(q, len(values), rates) / len(values) for q in (0.025, 0.975))
        axes.fill_between(rates, low, high, color=color, alpha=0.15, linewidth=0)
    axes.plot([0, 1], [0, 1], color="#777777", linewidth=1, linestyle=":")
    axes.set(xlabel="nominal false-alarm rate", ylabel="measured", xlim=(0, 1), ylim=(0, 1.01))
    axes.set_title(title)
    axes.legend(fontsize="small", loc="lower right")
    _save(figure, path)
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
    figure = _new_figure(9.0, 3.6)
    histogram, roc = figure.subplots(1, 2)
    figure.suptitle(machine)
    bins = np.histogram_bin_edges(anomaly_scores, bins=30).tolist()
    for group in _groups(conditions, domains):
        histogram.hist(
            anomaly_scores[group.rows],
            bins=bins,
            histtype="step",
            linewidth=1.8,
            linestyle="-" if group.condition == "normal" else "--",
            color=group.color,
            label=group.label,
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
    _save(figure, path)


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
    figure = _new_figure(3.0 * len(waveforms), 3.0)
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
    _save(figure, path)


def power_db(waveform: NDArray[np.float32], n_fft: int = 512) -> NDArray[np.float64]:
    """Return the power spectrogram in dB, (bins, frames): Hann windows, half overlapping."""
    frames = np.lib.stride_tricks.sliding_window_view(waveform, n_fft)[:: n_fft // 2]
    spectrum = np.fft.rfft(frames * np.hanning(n_fft), axis=1).T
    decibels: NDArray[np.float64] = 10 * np.log10(np.abs(spectrum) ** 2 + 1e-12)
    return decibels


def plot_embeddings(
    path: Path,
    machine: str,
    embedding: NDArray[np.float32],
    conditions: NDArray[np.object_],
    domains: NDArray[np.object_],
    *,
    references: NDArray[np.float32] | None = None,
    projection: Projection = "pca",
) -> None:
    """Draw a machine's clips as points in a plane, by domain and condition.

    Principal components are those of the references where there are any. t-SNE keeps neighbours
    together, and no distances.

    Args:
        path: PNG to write.
        machine: Full name, the title.
        embedding: (N, ...), as the detector compares it.
        conditions: (N,) "normal", "anomaly" or None.
        domains: (N,) "source", "target" or None.
        references: (M, ...), drawn small and grey.
        projection: "pca" or "tsne".

    Raises:
        ValueError: There is no plane: fewer than three clips, or a single number for each, as an
            autoencoder has.
    """
    clips = embedding.reshape(len(embedding), -1).astype(np.float64)
    if clips.shape[1] < 2:
        raise ValueError(f"{machine} has one number for each clip; a plane takes two or more.")
    kept = clips[:0] if references is None else references.reshape(len(references), -1)
    everything = np.concatenate([kept, clips])
    if len(everything) < 3:
        raise ValueError(f"{machine} has {len(everything)} clips; a plane takes three or more.")
    if projection == "tsne":
        perplexity = min(30.0, (len(everything) - 1) / 3)
        points = TSNE(perplexity=perplexity, random_state=0).fit_transform(everything)
        names = ["t-SNE, first dimension (no unit)", "second dimension (no unit)"]
    else:
        pca = PCA(2, random_state=0).fit(kept if len(kept) > 2 else everything)
        points = pca.transform(everything)
        shares = 100 * np.nan_to_num(pca.explained_variance_ratio_)
        what = "the references' variance" if len(kept) > 2 else "the variance"
        names = [
            f"{name} principal component ({share:.0f} % of {what})"
            for name, share in zip(("first", "second"), shares, strict=True)
        ]
    figure = _new_figure(6.8, 4.6)
    axes = figure.subplots()
    first = len(kept)
    if first:
        label = f"references ({first})"
        x, y = points[:first].T
        axes.scatter(x, y, s=9, color="#bbbbbb", linewidths=0, label=label)
    x, y = points[first:].T
    _scatter(axes, x, y, conditions, domains)
    axes.set(xlabel=names[0], ylabel=names[1])
    axes.set_title(f"{machine}: embeddings", fontsize="medium")
    _legend_beside(axes)
    _save(figure, path)


def plot_drift(
    path: Path,
    machine: str,
    anomaly_scores: NDArray[np.float64],
    conditions: NDArray[np.object_],
    domains: NDArray[np.object_],
    *,
    times: NDArray[np.float64] | None = None,
    time_unit: str = "hours",
    threshold: float | None = None,
) -> None:
    """Draw a machine's scores one after the other, with a trend that outliers do not bend.

    The trend is Theil and Sen's: the median slope between any two clips that are no anomalies (of
    `TREND_CLIPS`, evenly spaced, where there are more), with its 95 % interval.

    Args:
        path: PNG to write.
        machine: Full name, the title.
        anomaly_scores: (N,) N of at least 1.
        conditions: (N,) "normal", "anomaly" or None.
        domains: (N,) "source", "target" or None.
        times: (N,) when each clip was recorded; None takes their order as it is.
        time_unit: Of `times`.
        threshold: Drawn as a line if given.
    """
    x = np.arange(len(anomaly_scores), dtype=np.float64) if times is None else times
    figure = _new_figure(8.6, 3.6)
    axes = figure.subplots()
    _scatter(axes, x, anomaly_scores, conditions, domains)
    title = machine
    some = np.flatnonzero(conditions != "anomaly")
    if len(np.unique(x[some])) > 2:
        spread = np.linspace(0, len(some) - 1, min(len(some), TREND_CLIPS)).round().astype(int)
        some = some[spread]
        slope, intercept, low, high = theilslopes(anomaly_scores[some], x[some])
        ends = np.array([x[some].min(), x[some].max()])
        unit = "100 clips" if times is None else f"100 {time_unit}"
        title += f": trend {100 * slope:+.2g} per {unit} "
        title += f"(95 % interval {100 * low:+.2g} to {100 * high:+.2g})"
        axes.plot(ends, intercept + slope * ends, color="black", linewidth=1.5, label="trend")
    if threshold is not None:
        axes.axhline(threshold, color="black", linewidth=1, linestyle="--", label="threshold")
    axes.set_xlabel(
        "clips, in the order of their files" if times is None else f"time ({time_unit})"
    )
    axes.set_ylabel("anomaly score")
    axes.set_title(title, fontsize="medium")
    _legend_beside(axes)
    _save(figure, path)


def plot_anomaly_map(
    path: Path,
    title: str,
    waveform: NDArray[np.float32],
    anomaly_map: Mapping[str, Any],
    *,
    sampling_rate: int,
    beside: Mapping[str, NDArray[np.float32]] | None = None,
    nearest: Sequence[Mapping[str, Any]] = (),
    range_db: float = 60.0,
) -> None:
    """Draw a clip's anomaly map over its spectrogram, and by itself.

    Args:
        path: PNG to write.
        title: Of the figure: the machine, and which clip it is.
        waveform: (num_samples,), what the model hears, at least 512 samples.
        anomaly_map: The pipeline's "map".
        sampling_rate: Hz.
        beside: Name of a further panel -> (num_samples,), its spectrogram on the same scale.
        nearest: The pipeline's "nearest_references", listed below.
        range_db: From the loudest point of all spectrograms down to what is white.
    """
    sounds = {"the map over what the model hears": waveform, **(beside or {})}
    levels = {name: power_db(sound) for name, sound in sounds.items()}
    loudest = max(level.max() for level in levels.values())
    values = np.asarray(anomaly_map["values"]).T  # (band, time)
    seconds, khz = (
        np.asarray(anomaly_map[name]) for name in ("time_edges_seconds", "band_edges_hz")
    )
    khz = khz / 1_000
    highest = sampling_rate / 2_000
    largest = max(float(np.abs(values).max()), 1e-30)
    figure = _new_figure(3.6 * (1 + len(sounds)), 3.6 + 0.2 * len(nearest))
    row = figure.subplots(1, 1 + len(sounds), sharex=True, sharey=True)
    for axes, (name, level) in zip(row, levels.items(), strict=False):
        frames = np.linspace(0, len(sounds[name]) / sampling_rate, level.shape[1] + 1)
        bins = ((np.arange(len(level) + 1) - 0.5) * highest / (len(level) - 1)).clip(0, highest)
        image = axes.pcolormesh(
            frames, bins, level, cmap="Greys", vmin=loudest - range_db, vmax=loudest
        )
        axes.set_title(name, fontsize="medium")
    orange = [(*to_rgb(COLORS["anomaly", None]), alpha) for alpha in (0.0, 0.85)]
    over = LinearSegmentedColormap.from_list("over", orange)
    row[0].pcolormesh(seconds, khz, values.clip(min=0), cmap=over, vmin=0, vmax=largest)
    share = row[-1].pcolormesh(seconds, khz, values, cmap="PuOr_r", vmin=-largest, vmax=largest)
    row[-1].set_title(f"the map, {anomaly_map['method']}", fontsize="medium")
    for axes in row:
        axes.set_yscale("function", functions=(_mel, _mel_inverse))
        axes.set(xlabel="time (s)", xlim=(0, len(waveform) / sampling_rate), ylim=(0, highest))
        ticks = [tick for tick in TICKS_KHZ if tick <= highest]
        axes.set_yticks(ticks, [f"{tick:g}" for tick in ticks])
    row[0].set_ylabel("frequency (kHz)")
    figure.colorbar(image, ax=row[:-1], label="level (dB)")
    figure.colorbar(share, ax=row[-1], label="share of the anomaly score")
    figure.suptitle(title)
    if nearest:
        listed = [
            f"{item['file_name']} ({item['domain'] or 'unknown domain'}, "
            f"distance {item['distance']:.3g})"
            for item in nearest
        ]
        figure.supxlabel("\n".join(["nearest normal clips:", *listed]), fontsize="small")
    _save(figure, path)


def _new_figure(width: float, height: float) -> Figure:
    """Return a figure of so many inches that no window belongs to."""
    figure = Figure(figsize=(width, height), layout="constrained")
    FigureCanvasAgg(figure)
    return figure


def _save(figure: Figure, path: Path) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    figure.savefig(path, dpi=110)


class _Group(NamedTuple):
    """Clips of one condition and domain: which they are, and how they are drawn."""

    condition: str | None
    domain: str | None
    rows: NDArray[np.bool_]
    color: str
    label: str


def _groups(conditions: NDArray[np.object_], domains: NDArray[np.object_]) -> Iterator[_Group]:
    for condition, domain in sorted(set(zip(conditions, domains, strict=True)), key=str):
        rows = (conditions == condition) & (domains == domain)
        name = " ".join(part for part in (domain, condition or "unlabelled") if part)
        color = COLORS.get((condition, domain), UNKNOWN_COLOR)
        yield _Group(condition, domain, rows, color, f"{name} ({rows.sum()})")


def _scatter(
    axes: Axes,
    x: NDArray[np.float64],
    y: NDArray[np.float64],
    conditions: NDArray[np.object_],
    domains: NDArray[np.object_],
) -> None:
    """Draw clips as points: colour and marker by condition, hollow where the domain is target."""
    for group in _groups(conditions, domains):
        axes.scatter(
            x[group.rows],
            y[group.rows],
            s=28,
            marker=MARKERS[group.condition],
            facecolors="none" if group.domain == "target" else group.color,
            edgecolors=group.color,
            linewidths=1.2,
            label=group.label,
        )


def _legend_beside(axes: Axes) -> None:
    """Put the legend where no point is."""
    axes.legend(fontsize="small", loc="upper left", bbox_to_anchor=(1.01, 1.0), frameon=False)


def _mel(khz: NDArray[np.float64]) -> NDArray[np.float64]:
    """Return where a frequency stands on a mel axis, without its unit."""
    return np.log1p(np.maximum(khz, 0.0) / 0.7)


def _mel_inverse(mel: NDArray[np.float64]) -> NDArray[np.float64]:
    return 0.7 * np.expm1(mel)

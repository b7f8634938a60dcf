"""Pictures of scores; matplotlib objects without a window, saved as PNG."""

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

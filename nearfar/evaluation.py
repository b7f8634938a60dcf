"""Scores of test clips: one table, its metrics, its files."""

import csv
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Self

import numpy as np
from numpy.typing import NDArray

from nearfar.dcase_task2.bootstrap import bootstrap_interval
from nearfar.dcase_task2.metrics import official_score, overall_metrics, section_metrics
from nearfar.files import read_json, write_json
from nearfar.plots import plot_machine
from nearfar.submission import write_anomaly_scores, write_decisions

NOMINAL_RATES = (0.01, 0.05, 0.1)
SCORES_FILE, METRICS_FILE, CALIBRATION_FILE = (
    "scores.csv",
    "metrics.json",
    "calibration_scores.json",
)
COLUMNS = ("machine", "file_name", "domain", "condition", "anomaly_score", "p_value", "decision")


@dataclass(frozen=True, eq=False)
class ScoreTable:
    """Scores of test clips; row i of every column is clip i.

    Attributes:
        machines: (N,) full names.
        file_names: (N,) unique within a machine.
        domains: (N,) "source", "target" or None.
        conditions: (N,) "normal", "anomaly" or None.
        anomaly_scores: (N,) float64, higher is more anomalous.
        p_values: (N,) float64, NaN where the machine has no calibration clips.
        decisions: (N,) 0 normal, 1 anomalous, None where the machine has no threshold.
    """

    machines: NDArray[np.object_]
    file_names: NDArray[np.object_]
    domains: NDArray[np.object_]
    conditions: NDArray[np.object_]
    anomaly_scores: NDArray[np.float64]
    p_values: NDArray[np.float64]
    decisions: NDArray[np.object_]

    def __post_init__(self) -> None:
        if len({len(column) for column in vars(self).values()}) != 1:
            lengths = {name: len(column) for name, column in vars(self).items()}
            raise ValueError(f"Every column must describe the same clips, got {lengths}.")
        if not np.isfinite(self.anomaly_scores).all():
            row = int(np.flatnonzero(~np.isfinite(self.anomaly_scores))[0])
            raise ValueError(
                f"{self.machines[row]}/{self.file_names[row]} has the score "
                f"{self.anomaly_scores[row]}; a score must be finite."
            )

    def __len__(self) -> int:
        return len(self.machines)

    @property
    def machine_names(self) -> list[str]:
        """The machines in the table, sorted."""
        return sorted(set(self.machines.tolist()))

    def select(self, machine: str) -> Self:
        """Return the clips of one machine, by its full name."""
        chosen = self.machines == machine
        return type(self)(**{name: column[chosen] for name, column in vars(self).items()})

    def write_csv(self, path: Path) -> None:
        """Write all columns, "" where unknown; `read_csv` is the inverse."""
        with path.open("w", newline="", encoding="utf-8") as file:
            writer = csv.writer(file)
            writer.writerow(COLUMNS)
            for i in range(len(self)):
                p_value = self.p_values[i]
                writer.writerow(
                    [
                        self.machines[i],
                        self.file_names[i],
                        self.domains[i] or "",
                        self.conditions[i] or "",
                        repr(float(self.anomaly_scores[i])),
                        "" if np.isnan(p_value) else repr(float(p_value)),
                        "" if self.decisions[i] is None else int(self.decisions[i]),
                    ]
                )

    @classmethod
    def read_csv(cls, path: Path) -> Self:
        """Read what `write_csv` wrote.

        Raises:
            FileNotFoundError: It is not there.
            ValueError: It is not a table of scores.
        """
        if not path.is_file():
            raise FileNotFoundError(f"There is no {path}. Make it with score.py --output_dir.")
        with path.open(newline="", encoding="utf-8") as file:
            reader = csv.DictReader(file)
            if tuple(reader.fieldnames or ()) != COLUMNS:
                raise ValueError(
                    f"{path} must have the columns {COLUMNS}, got {reader.fieldnames}."
                )
            rows = list(reader)

        def column(name: str) -> NDArray[np.object_]:
            array = np.empty(len(rows), dtype=object)
            array[:] = [row[name] or None for row in rows]
            return array

        decisions = column("decision")
        try:
            decisions[:] = [None if word is None else int(word) for word in decisions]
            return cls(
                machines=column("machine"),
                file_names=column("file_name"),
                domains=column("domain"),
                conditions=column("condition"),
                anomaly_scores=column("anomaly_score").astype(np.float64),
                p_values=column("p_value").astype(np.float64),
                decisions=decisions,
            )
        except ValueError as error:
            raise ValueError(f"{path} cannot be read: {error} Make it anew.") from error


def evaluate_scores(
    table: ScoreTable, *, num_resamples: int = 1000, seed: int = 0
) -> dict[str, Any]:
    """Return the metrics of every machine and the official score, in raw 0..1 units.

    What the data do not allow is None, with the reason beside it; nothing is made up. The interval
    is a percentile bootstrap over test clips within machine, domain and condition.

    Args:
        table: Scores of the test clips.
        num_resamples: Of the bootstrap; 0 leaves the interval out.
        seed: Of the bootstrap.
    """
    machines: dict[str, dict[str, Any]] = {}
    sections, reasons = [], []
    for name in table.machine_names:
        clips = table.select(name)
        values: dict[str, Any] = {"auc_source": None, "auc_target": None, "pauc": None}
        labelled = np.array([condition is not None for condition in clips.conditions])
        anomalous = (clips.conditions == "anomaly")[labelled]
        scores, domains = clips.anomaly_scores[labelled], clips.domains[labelled]
        try:
            section = section_metrics(anomalous, scores, domains)
        except ValueError as error:
            values["reason"] = str(error)
            reasons.append(f"{name}: {error}")
            if 0 < anomalous.sum() < len(anomalous):
                overall = overall_metrics(anomalous, scores)
                values |= {"auc": overall[0], "pauc": overall[1]}
        else:
            values |= section._asdict()
            sections.append(section)
        values["num_normal"] = int((~anomalous).sum())
        values["num_anomalous"] = int(anomalous.sum())
        values["false_alarm_rates"] = false_alarm_rates(clips)
        machines[name] = values
    complete = bool(sections) and not reasons
    metrics: dict[str, Any] = {
        "official_score": official_score(sections) if complete else None,
        "machines": machines,
    }
    if not complete:
        metrics["reason"] = "The official score needs all metrics. " + " ".join(reasons)
    elif num_resamples:
        interval = bootstrap_interval(
            bootstrap_input(table), num_resamples=num_resamples, seed=seed
        )
        metrics["official_score_interval"] = [interval.low, interval.high]
    return metrics


def bootstrap_input(
    table: ScoreTable,
) -> dict[str, tuple[NDArray[np.bool_], NDArray[np.object_], NDArray[np.float64]]]:
    """Return machine -> (anomalous, domains, anomaly_scores) of the clips with a known condition.

    Sorted by file name, so that two systems' tables pair.
    """
    inputs = {}
    for name in table.machine_names:
        clips = table.select(name)
        labelled = np.flatnonzero([condition is not None for condition in clips.conditions])
        order = labelled[np.argsort(clips.file_names[labelled])]
        inputs[name] = (
            (clips.conditions == "anomaly")[order],
            clips.domains[order],
            clips.anomaly_scores[order],
        )
    return inputs


def false_alarm_rates(clips: ScoreTable) -> dict[str, dict[str, float | None]]:
    """Return how often normal test clips have a p-value up to each nominal rate, by domain.

    A rate near its nominal value is what a trustworthy p-value gives. Domains without normal clips
    are left out, and a machine without p-values has None.
    """
    rates: dict[str, dict[str, float | None]] = {}
    for domain in sorted({str(domain or "unknown") for domain in clips.domains}):
        domains = np.array([str(value or "unknown") for value in clips.domains])
        p_values = clips.p_values[(domains == domain) & (clips.conditions == "normal")]
        if len(p_values):
            known = not np.isnan(p_values).any()
            rates[domain] = {
                str(rate): float((p_values <= rate).mean()) if known else None
                for rate in NOMINAL_RATES
            }
    return rates


def format_metrics(metrics: Mapping[str, Any]) -> str:
    """Return a readable table of metrics in percent."""

    def percent(value: float | None) -> str:
        return "-" if value is None else f"{100 * value:.2f}"

    lines = [f"{'machine':<28}{'source AUC':>12}{'target AUC':>12}{'AUC':>9}{'pAUC':>9}"]
    for name, values in metrics["machines"].items():
        shown = [values["auc_source"], values["auc_target"], values.get("auc"), values["pauc"]]
        cells = [percent(value) for value in shown]
        lines.append(f"{name:<28}{cells[0]:>12}{cells[1]:>12}{cells[2]:>9}{cells[3]:>9}")
    score = f"official score {percent(metrics['official_score'])}"
    if interval := metrics.get("official_score_interval"):
        score += f", 95 % interval {percent(interval[0])} to {percent(interval[1])}"
    lines.append(score)
    if "reason" in metrics:
        lines.append(metrics["reason"])
    return "\n".join(lines)


def write_score_folder(
    folder: Path,
    table: ScoreTable,
    metrics: Mapping[str, Any],
    *,
    calibration_scores: Mapping[str, list[float]],
    thresholds: Mapping[str, float | None],
) -> None:
    """Write challenge CSVs, `scores.csv`, `metrics.json`, calibration scores and a plot a machine.

    Args:
        folder: An existing folder (a temporary one: see `files.whole_folder`).
        table: Scores of the test clips.
        metrics: From `evaluate_scores`, and what else is known of the run.
        calibration_scores: Per machine, of normal clips; a fusion needs them.
        thresholds: Per machine; None where there is none, and then no decisions are written.
    """
    table.write_csv(folder / SCORES_FILE)
    write_json(folder / CALIBRATION_FILE, dict(calibration_scores))
    for machine in table.machine_names:
        clips = table.select(machine)
        _, machine_type, section = machine.split("/")
        names = clips.file_names.tolist()
        write_anomaly_scores(
            folder, machine_type, int(section), names, clips.anomaly_scores.tolist()
        )
        if thresholds[machine] is not None:
            decisions = [int(decision) for decision in clips.decisions]
            write_decisions(folder, machine_type, int(section), names, decisions)
        plot_machine(
            folder / "plots" / f"{machine.replace('/', '_')}.png",
            machine,
            clips.anomaly_scores,
            clips.conditions,
            clips.domains,
            threshold=thresholds[machine],
        )
    write_json(folder / METRICS_FILE, dict(metrics))


def read_metrics(folder: Path) -> dict[str, Any]:
    """Read a score folder's `metrics.json`."""
    path = folder / METRICS_FILE
    if not path.is_file():
        raise FileNotFoundError(f"There is no {path}. Make it with score.py --output_dir {folder}.")
    metrics: dict[str, Any] = read_json(path)
    return metrics

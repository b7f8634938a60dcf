"""Metrics for readers: a table, CSV, JSON or LaTeX, every figure with its bootstrap interval."""

import csv
import io
import json
from collections.abc import Callable, Iterator, Mapping
from typing import Any, Literal

from nearfar.false_alarms import format_false_alarms

PrintAs = Literal["table", "csv", "json", "latex"]

# Key in `metrics.json` -> column; a column that no machine has is left out.
_RANKING = {
    "auc_source": "source AUC",
    "auc_target": "target AUC",
    "pauc": "pAUC",
}
_WITHIN_DOMAIN = {
    "within_domain_auc_source": "source AUC",
    "within_domain_auc_target": "target AUC",
    "within_domain_pauc_source": "source pAUC",
    "within_domain_pauc_target": "target pAUC",
}
_DECISIONS = {
    f"{metric}{suffix}": f"{name} {word}".strip()
    for suffix, name in (("_source", "source"), ("_target", "target"), ("", ""))
    for metric, word in (("precision", "precision"), ("recall", "recall"), ("f1", "F1"))
}


def format_metrics(metrics: Mapping[str, Any], print_as: PrintAs = "table") -> str:
    """Return what `evaluate_scores` found, for readers (in percent) or programs (0..1, JSON only).

    Args:
        metrics: From `evaluate_scores`.
        print_as: "table" is plain text with the false-alarm rates below; "csv" has a line for
            each machine and metric; "latex" is a tabular of the official metrics (booktabs).
    """
    return FORMATS[print_as](metrics)


def _rows(metrics: Mapping[str, Any]) -> Iterator[tuple[str, Mapping[str, Any]]]:
    """Yield the machines, then their mean where there are several."""
    yield from metrics["machines"].items()
    if len(metrics["machines"]) > 1 and metrics.get("means"):
        kind = "arithmetic" if metrics.get("year") == 2020 else "harmonic"
        yield f"{kind} mean", metrics["means"]


def _columns(metrics: Mapping[str, Any], names: Mapping[str, str]) -> dict[str, str]:
    """Return those columns that a machine has a value for."""
    machines = metrics["machines"].values()
    return {
        key: name
        for key, name in names.items()
        if any(values.get(key) is not None for values in machines)
    }


def _ranking_columns(metrics: Mapping[str, Any]) -> dict[str, str]:
    """Return the columns of the official metrics, with the AUC over all where one replaces them."""
    year, machines = metrics.get("year"), list(metrics["machines"].values())
    if year == 2021:
        return _columns(metrics, _WITHIN_DOMAIN)
    if year == 2020:
        return {"auc": "AUC", "pauc": "pAUC"}
    if any(values["auc_source"] is None and values.get("auc") is not None for values in machines):
        return _RANKING | {"auc": "AUC"}
    return _RANKING


def _table(metrics: Mapping[str, Any]) -> str:
    blocks = [_text_table(metrics, "machine", _ranking_columns(metrics))]
    if decisions := _columns(metrics, _DECISIONS):
        blocks.append(_text_table(metrics, "decisions", decisions))
    score = f"official score {_percent(metrics['official_score'])}"
    if interval := metrics.get("official_score_interval"):
        score += f", 95 % interval {_percent(interval[0])} to {_percent(interval[1])}"
    blocks[0] += f"\n{score}"
    if "reason" in metrics:
        blocks[0] += f"\n{metrics['reason']}"
    if metrics.get("false_alarms"):
        blocks.append(format_false_alarms(metrics["false_alarms"]))
    return "\n\n".join(blocks)


def _text_table(metrics: Mapping[str, Any], title: str, columns: Mapping[str, str]) -> str:
    lines = [[title, *columns.values()]]
    for name, values in _rows(metrics):
        lines.append([name, *(_cell(values, key) for key in columns)])
    widths = [max(28, *(len(line[0]) + 2 for line in lines))]
    widths += [max(len(line[i]) for line in lines) + 2 for i in range(1, len(columns) + 1)]
    return "\n".join(
        line[0].ljust(widths[0])
        + "".join(cell.rjust(width) for cell, width in zip(line[1:], widths[1:], strict=True))
        for line in lines
    )


def _cell(values: Mapping[str, Any], key: str) -> str:
    cell = _percent(values.get(key))
    if interval := values.get("intervals", {}).get(key):
        cell += f" ({100 * interval[0]:.1f}-{100 * interval[1]:.1f})"
    return cell


def _csv(metrics: Mapping[str, Any]) -> str:
    """Return lines machine,metric,value,low,high in percent; all machines' metrics are there."""
    buffer = io.StringIO()
    writer = csv.writer(buffer, lineterminator="\n")
    writer.writerow(["machine", "metric", "value", "low", "high"])
    for name, values in _rows(metrics):
        for key, value in values.items():
            if isinstance(value, float):
                ends = values.get("intervals", {}).get(key, ())
                writer.writerow([name, key, *(f"{100 * x:.4f}" for x in (value, *ends))])
    if metrics["official_score"] is not None:
        ends = metrics.get("official_score_interval", ())
        cells = [f"{100 * x:.4f}" for x in (metrics["official_score"], *ends)]
        writer.writerow(["all", "official_score", *cells])
    return buffer.getvalue().rstrip("\n")


def _json(metrics: Mapping[str, Any]) -> str:
    return json.dumps(metrics, indent=2, allow_nan=False, ensure_ascii=False)


def _latex(metrics: Mapping[str, Any]) -> str:
    columns = _ranking_columns(metrics) | {
        key: name for key, name in _columns(metrics, _DECISIONS).items() if key.startswith("f1")
    }
    lines = [rf"\begin{{tabular}}{{l{'r' * len(columns)}}}", r"\toprule"]
    lines.append(" & ".join(["Machine", *columns.values()]) + r" \\")
    lines.append(r"\midrule")
    for name, values in _rows(metrics):
        cells = [_latex_cell(values, key) for key in columns]
        lines.append(" & ".join([name.replace("_", r"\_"), *cells]) + r" \\")
    lines.append(r"\midrule")
    score = _latex_cell(
        {
            "score": metrics["official_score"],
            "intervals": {"score": metrics.get("official_score_interval")},
        },
        "score",
    )
    lines.append(rf"Official score & \multicolumn{{{len(columns)}}}{{l}}{{{score}}} \\")
    return "\n".join([*lines, r"\bottomrule", r"\end{tabular}"])


def _latex_cell(values: Mapping[str, Any], key: str) -> str:
    value = values.get(key)
    if value is None:
        return "--"
    cell = f"{100 * value:.2f}"
    if interval := values.get("intervals", {}).get(key):
        cell += rf" {{\footnotesize [{100 * interval[0]:.1f}, {100 * interval[1]:.1f}]}}"
    return cell


def _percent(value: float | None) -> str:
    return "-" if value is None else f"{100 * value:.2f}"


FORMATS: dict[str, Callable[[Mapping[str, Any]], str]] = {
    "table": _table,
    "csv": _csv,
    "json": _json,
    "latex": _latex,
}

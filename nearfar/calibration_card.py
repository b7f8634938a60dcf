"""What a model card says of its thresholds: from which clips they come, and how often they err."""

from collections.abc import Mapping, Sequence
from typing import Any

HELD_OUT = """\
{num_calibration} other normal clips, of neither training nor bank, set the thresholds."""
CROSS_FITTED = """\
The thresholds are cross-fitted: {num_folds} more encoders were trained by the same recipe, each
without one of {num_folds} parts of the references, whose clips it then scored by a bank without
them. So {num_calibration} scores set the thresholds, each of an encoder and a bank that did not
know the clip. The encoder of this checkpoint is another one, trained on all references: the
thresholds hold as far as its scores have the scale of the others'."""
CROSS_FITTED_FROZEN = """\
The thresholds are cross-fitted: the encoder is frozen, and {num_calibration} references were each
scored by a bank without its part, one of {num_folds}."""
LEFT_OUT = """\
No clip was held out: the encoder is frozen, and each reference was scored by the others to set the
thresholds."""
NONE = "No clip was held out, so there are no thresholds."

FALSE_ALARMS = """\
How often a normal clip raises an alarm, by clips that had no say in it: the {num_calibration}
calibration clips were dealt to five parts, and those of each judged by the p-values that the other
four give.{caveat} Over both domains the rates must lie near the nominal ones, as all these clips
are drawn alike; one threshold serves both domains, and the rows show how evenly.

| machine | domain | clips | {heads} |
| --- | --- | --- | {rules} |
"""
CAVEAT = (
    "\nThe scores of those four come from encoders of which most were trained on the judged clip,\n"
    "which the judged clip's own was not."
)


def calibration_sentence(recipe: Mapping[str, Any], metrics: Mapping[str, Any]) -> str:
    """Return which normal clips set the thresholds.

    Args:
        recipe: All arguments of the run.
        metrics: Its `metrics.json`.
    """
    frozen, count = metrics["frozen_encoder"], metrics["num_calibration"]
    if recipe.get("calibration") == "cross_fitted":
        text = CROSS_FITTED_FROZEN if frozen else CROSS_FITTED
        return text.format(num_folds=recipe["num_folds"], num_calibration=count)
    if count:
        return HELD_OUT.format(num_calibration=count)
    return LEFT_OUT if frozen else NONE


def false_alarm_section(rows: Sequence[Mapping[str, Any]], *, tuned_folds: bool) -> str:
    """Return the measured false alarms, for the card.

    Args:
        rows: `FalseAlarmRate._asdict()` of each, from `untouched_false_alarms`.
        tuned_folds: Whether the scores were cross-fitted by encoders that were trained.
    """
    if not rows:
        return "Not measured: there are no two calibration clips of one machine."
    lines: dict[tuple[str, str], list[Mapping[str, Any]]] = {}
    for row in rows:
        lines.setdefault((row["machine"], row["domain"]), []).append(row)
    nominal = sorted({row["nominal"] for row in rows})
    text = FALSE_ALARMS.format(
        num_calibration=_num_judged(rows),
        caveat=CAVEAT if tuned_folds else "",
        heads=" | ".join(f"at nominal {100 * rate:g} %" for rate in nominal),
        rules=" | ".join("---" for _ in nominal),
    )
    for (machine, domain), group in lines.items():
        cells = " | ".join(_cell(row) for row in sorted(group, key=lambda row: row["nominal"]))
        text += f"| {machine} | {domain} | {group[0]['num_normal']} | {cells} |\n"
    return text + (
        "\nMeasured share in percent (exact 95 % interval) [the most that so few clips can give up "
        "to the nominal rate]."
    )


def _num_judged(rows: Sequence[Mapping[str, Any]]) -> int:
    """Return how many clips were judged: the largest group of each machine holds all of them."""
    largest: dict[str, int] = {}
    for row in rows:
        if row["machine"] != "all":
            largest[row["machine"]] = max(largest.get(row["machine"], 0), row["num_normal"])
    return sum(largest.values())


def _cell(row: Mapping[str, Any]) -> str:
    cell = f"{100 * row['measured']:.1f} ({100 * row['low']:.1f} to {100 * row['high']:.1f})"
    return cell if row["expected"] is None else f"{cell} [{100 * row['expected']:.1f}]"

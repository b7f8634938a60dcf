"""Tables of our figures beside published ones."""

from collections.abc import Mapping, Sequence
from typing import Any, NamedTuple

import numpy as np

from nearfar.intervals import mean_interval
from nearfar.published import DEFINITIONS, PublishedSystem

COLUMNS = ("source AUC", "target AUC", "pAUC")

Metrics = Mapping[str, Any]  # of a score folder


class Estimate(NamedTuple):
    """One of our figures with its 95 % interval, in 0..1."""

    value: float
    low: float
    high: float

    def __str__(self) -> str:
        return f"{100 * self.value:.2f} ({100 * self.low:.2f} to {100 * self.high:.2f})"


def estimate(values: Sequence[float | None], intervals: Sequence[Any]) -> Estimate | None:
    """Return the mean over seeds, None where a seed has no value.

    Args:
        values: One per seed.
        intervals: Over test clips, one per seed; read if there is one seed only. With several the
            interval is over seeds (Student's t).
    """
    known = [value for value in values if value is not None]
    if len(known) < len(values) or not known:
        return None
    if len(known) == 1:
        low, high = intervals[0] or (np.nan, np.nan)
        return Estimate(known[0], low, high)
    mean, half = mean_interval(np.array(known))
    return Estimate(mean, mean - half, mean + half)


def official(seeds: Sequence[Metrics]) -> Estimate | None:
    """Return the official score over seeds."""
    return estimate(
        [metrics["official_score"] for metrics in seeds],
        [metrics.get("official_score_interval") for metrics in seeds],
    )


def format_system(system: PublishedSystem, seeds: Sequence[Metrics], weights: str) -> list[str]:
    """Return the lines of a system's table: a line per machine, ours and published in turn.

    Args:
        system: As published.
        seeds: Our metrics, one per seed.
        weights: Where the encoder's weights came from.
    """
    keys = DEFINITIONS[system.definition]
    lines = [
        f"{system.name}, recipe {system.recipe}; published: {system.source}; {weights}",
        _conditions(system, len(seeds)),
        f"{'machine':<28}" + "".join(f"{column:>26}{'published':>11}" for column in COLUMNS),
    ]
    ours = [metrics["machines"] for metrics in seeds]
    for machine in sorted(ours[0]):
        printed = system.machines.get(machine, (None,) * len(keys))
        line = f"{machine:<28}"
        for key, theirs in zip(keys, printed, strict=True):
            found = estimate(
                [machines[machine].get(key) for machines in ours],
                [machines[machine].get("intervals", {}).get(key) for machines in ours],
            )
            line += _pair(found, theirs)
        lines.append(line)
    if system.definition == "official":
        lines.append(f"{'official score':<28}{_pair(official(seeds), system.official_score)}")
    if not set(system.machines) & set(ours[0]):
        lines.append("None of the published machines is in this data: COMPARE NOTHING.")
    return lines


def format_ladder(
    rungs: Sequence[PublishedSystem], results: Mapping[str, Sequence[Metrics]], weights: str
) -> list[str]:
    """Return the lines of the training-free ladder: official scores, and each rung's step.

    Args:
        rungs: From the lowest to the highest.
        results: Our metrics of those that are done, one per seed.
        weights: Where the encoder's weights came from.
    """
    lines = [
        f"The training-free ladder, official scores; {weights}",
        f"{'rung':<62}{'ours (95 % interval)':>26}{'step':>8}{'published':>11}{'step':>8}",
    ]
    before: tuple[float | None, float | None] = (None, None)
    for rung in rungs:
        found = official(results[rung.name]) if rung.name in results else None
        theirs = rung.official_score
        now = (None if found is None else found.value, theirs)
        lines.append(
            f"{rung.title:<62}{'-' if found is None else str(found):>26}{_step(now[0], before[0])}"
            f"{'-' if theirs is None else f'{100 * theirs:.2f}':>11}{_step(now[1], before[1])}"
        )
        before = now
    return lines


def _conditions(system: PublishedSystem, num_seeds: int) -> str:
    over = "over test clips, one seed" if num_seeds == 1 else f"over {num_seeds} seeds"
    line = f"95 % intervals {over}; * published lies outside"
    if system.definition == "within_domain":
        line += "; AUC WITHIN each domain, a diagnostic: not the official definition"
    return line


def _pair(ours: Estimate | None, theirs: float | None) -> str:
    outside = ours is not None and theirs is not None and not ours.low <= theirs <= ours.high
    printed = "-" if theirs is None else f"{100 * theirs:.2f}{'*' if outside else ''}"
    return f"{'-' if ours is None else str(ours):>26}{printed:>11}"


def _step(now: float | None, before: float | None) -> str:
    step = "" if now is None or before is None else f"{100 * (now - before):+.2f}"
    return f"{step:>8}"


__all__ = ["Estimate", "estimate", "format_ladder", "format_system", "official"]

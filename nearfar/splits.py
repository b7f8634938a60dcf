"""Which normal clips train, fill the bank, select weights, or are kept back to calibrate it."""

from collections import Counter
from collections.abc import Sequence
from typing import Any

import numpy as np
from numpy.typing import NDArray


def held_out_rows(
    machines: Sequence[str], domains: Sequence[str | None], *, share: float, seed: int
) -> NDArray[np.bool_]:
    """Choose the clips that neither train the encoder nor sit in the bank, for its thresholds.

    A share of every machine and domain, at least one clip where it has four or more, and never all;
    a smaller group gives none, for it needs all it has as references.

    Args:
        machines: (N,) full machine names of normal training clips.
        domains: (N,), None where unknown.
        share: Of each machine and domain, in [0, 1).
        seed: Of the choice.

    Returns:
        (N,) True where held out.

    Raises:
        ValueError: The share is out of range, or a machine has a single clip: a detector needs two.
    """
    for machine, count in sorted(Counter(machines).items()):
        if count < 2:
            raise ValueError(
                f"{machine} has {count} training clip, fewer than the 2 references that a detector "
                "needs. Add normal clips of it, or leave it out with machine_types."
            )
    if not 0 <= share < 1:
        raise ValueError(f"held_out_share={share} must be in [0, 1): the rest fills the bank.")
    groups = [f"{machine}|{domain}" for machine, domain in zip(machines, domains, strict=True)]
    return _share_of_each(np.array(groups), share, seed)


def validation_rows(labels: NDArray[np.int64], *, share: float, seed: int) -> NDArray[np.bool_]:
    """Choose the clips by which weights are selected: they do not train, but may sit in the bank.

    A share of every proxy class, at least one clip where it has four or more, and never all; a
    smaller class gives none, so that no class is left untrained.

    Args:
        labels: (N,) proxy classes of the clips that are not held out.
        share: Of each class, in [0, 1).
        seed: Of the choice.

    Returns:
        (N,) True where chosen.

    Raises:
        ValueError: The share is out of range, or no class is large enough to give a clip.
    """
    if not 0 <= share < 1:
        raise ValueError(f"validation_share={share} must be in [0, 1): the rest trains.")
    chosen = _share_of_each(labels, share, seed)
    if share > 0 and not chosen.any():
        raise ValueError(
            f"validation_share={share}, but no proxy class has the 4 clips that it takes to spare "
            "one. Add clips, or merge classes with label_parts."
        )
    return chosen


def _share_of_each(groups: NDArray[Any], share: float, seed: int) -> NDArray[np.bool_]:
    """Choose a share of each group of four or more, at least one and never all, (N,)."""
    rng = np.random.default_rng(seed)
    chosen = np.zeros(len(groups), dtype=bool)
    for group in np.unique(groups):
        rows = np.flatnonzero(groups == group)
        count = 0
        if share > 0 and len(rows) >= 4:
            count = min(max(1, round(share * len(rows))), len(rows) - 1)
        chosen[rng.choice(rows, count, replace=False)] = True
    return chosen


def spread_rows(machines: Sequence[str] | NDArray[np.object_], *, per_machine: int) -> list[int]:
    """Return rows of at most so many clips of each machine, evenly spaced, in ascending order."""
    names = np.asarray(machines, dtype=object)
    rows: list[int] = []
    for name in sorted(set(names.tolist())):
        own = np.flatnonzero(names == name)
        picked = np.linspace(0, len(own) - 1, min(len(own), per_machine)).round().astype(int)
        rows += own[picked].tolist()
    return sorted(rows)

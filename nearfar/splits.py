"""Which normal clips train, fill the bank, select weights, or are kept back to calibrate it."""

from collections import Counter
from collections.abc import Sequence
from typing import Any

import numpy as np
from numpy.typing import NDArray


def held_out_rows(
    machines: Sequence[str],
    domains: Sequence[str | None],
    *,
    share: float,
    seed: int,
    attributes: Sequence[str] | None = None,
) -> NDArray[np.bool_]:
    """Choose the clips that neither train the encoder nor sit in the bank, for its thresholds.

    A share of every machine and domain, at least one clip where it has four or more, and never all;
    a smaller group gives none, for it needs all it has as references. With attributes, no setting
    of a machine and domain loses its last clip: of ten target clips in nine settings only one of
    the two that share theirs may go, and of ten in ten settings none.

    Args:
        machines: (N,) full machine names of normal training clips.
        domains: (N,), None where unknown.
        share: Of each machine and domain, in [0, 1).
        seed: Of the choice.
        attributes: (N,), "" where unknown; None does not look at settings.

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
    groups = np.array([f"{m}|{d}" for m, d in zip(machines, domains, strict=True)])
    chosen = _share_of_each(groups, share, seed)
    if attributes is not None:
        settings = np.array([f"{g}|{a}" for g, a in zip(groups, attributes, strict=True)])
        _spare_last_clips(chosen, groups, settings)
    return chosen


def fold_numbers(
    machines: Sequence[str], domains: Sequence[str | None], *, num_folds: int, seed: int
) -> NDArray[np.int64]:
    """Deal clips to folds, each of which is held out once, for cross-fitted thresholds.

    The clips of a machine are shuffled and dealt one by one, domain after domain, so that the folds
    differ by one clip at most, in all and in each domain.

    Args:
        machines: (N,) full machine names of normal training clips.
        domains: (N,), None where unknown.
        num_folds: Two or more; a machine with fewer clips is in as many folds as it has clips.
        seed: Of the shuffling.

    Returns:
        (N,) from 0 to num_folds - 1.

    Raises:
        ValueError: There are fewer than two folds, or a machine has fewer than three clips, so that
            a fold would leave its detector without the two that it needs.
    """
    if num_folds < 2:
        raise ValueError(f"num_folds={num_folds} must be 2 or more: each is scored by the others.")
    numbers = np.empty(len(machines), dtype=np.int64)
    rng = np.random.default_rng(seed)
    names = np.array(machines, dtype=object)
    for machine, count in sorted(Counter(machines).items()):
        if count - -(-count // num_folds) < 2:
            raise ValueError(
                f"{machine} has {count} training clips, too few for {num_folds} folds: without one "
                "of them, two references must be left. Add normal clips of it, take more folds, or "
                "leave it out with machine_types."
            )
        rows = rng.permutation(np.flatnonzero(names == machine)).tolist()
        rows.sort(key=lambda row: domains[row] or "")  # stable: domain by domain, shuffled within
        numbers[rows] = np.arange(count) % num_folds
    return numbers


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


def _spare_last_clips(
    chosen: NDArray[np.bool_], groups: NDArray[Any], settings: NDArray[Any]
) -> None:
    """Let every setting keep a clip that is not chosen; another of its group goes, if one can."""
    for group in np.unique(groups[chosen]):
        rows = np.flatnonzero(groups == group)
        kept = Counter(settings[rows[~chosen[rows]]].tolist())
        for row in rows[chosen[rows]]:
            if kept[settings[row]]:
                continue
            chosen[row] = False
            kept[settings[row]] += 1
            spare = [r for r in rows if not chosen[r] and kept[settings[r]] > 1]
            if spare:
                chosen[spare[0]] = True
                kept[settings[spare[0]]] -= 1


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

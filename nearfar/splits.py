"""Which normal clips train and fill the bank, and which are kept back to calibrate it."""

from collections import Counter
from collections.abc import Sequence

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
    rng = np.random.default_rng(seed)
    held_out = np.zeros(len(machines), dtype=bool)
    groups = np.array(
        [f"{machine}|{domain}" for machine, domain in zip(machines, domains, strict=True)]
    )
    for group in np.unique(groups):
        rows = np.flatnonzero(groups == group)
        count = 0
        if share > 0 and len(rows) >= 4:
            count = min(max(1, round(share * len(rows))), len(rows) - 1)
        held_out[rng.choice(rows, count, replace=False)] = True
    return held_out

"""What tables of clips have in common: columns of one length, with the machine of each clip."""

from collections.abc import Sequence
from typing import Any, Self

import numpy as np
from numpy.typing import NDArray


class ClipTable:
    """A dataclass whose fields are columns; row i of every column is clip i.

    Attributes:
        machines: (N,) full names.
        file_names: (N,) unique within a machine.
        domains: (N,) "source", "target" or None.
        conditions: (N,) "normal", "anomaly" or None.
    """

    machines: NDArray[np.object_]
    file_names: NDArray[np.object_]
    domains: NDArray[np.object_]
    conditions: NDArray[np.object_]

    def __len__(self) -> int:
        return len(self.machines)

    @property
    def machine_names(self) -> list[str]:
        """The machines in the table, sorted."""
        return sorted(set(self.machines.tolist()))

    def take(self, rows: NDArray[Any] | Sequence[int]) -> Self:
        """Return the table of some rows, given as indices or as a mask (N,)."""
        chosen = np.asarray(rows)
        return type(self)(**{name: column[chosen] for name, column in vars(self).items()})

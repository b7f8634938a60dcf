"""Which machines and subsets of a data set are asked for."""

from collections.abc import Collection, Iterable, Sequence
from typing import Protocol, TypeVar

SUBSETS = ("dev", "eval_train", "eval_test")


class _Part(Protocol):
    """What a data set has of one machine and subset."""

    @property
    def machine_type(self) -> str: ...

    @property
    def subset(self) -> str: ...


_P = TypeVar("_P", bound=_Part)


def select(
    parts: Sequence[_P],
    name: str,
    *,
    machine_types: Collection[str] | None,
    subsets: Collection[str] | None,
) -> list[_P]:
    """Return the parts of a data set that are asked for, in their order.

    Args:
        parts: All that it has.
        name: Of the data set, for messages.
        machine_types: Take only these; None takes all.
        subsets: Take only these; None takes all.

    Raises:
        FileNotFoundError: Nothing is left.
        ValueError: An option names something that does not exist.
    """
    if unknown := sorted(set(subsets or ()) - set(SUBSETS)):
        raise ValueError(f"subsets {unknown} do not exist. Choose from {listed(SUBSETS)}.")
    known = sorted({part.machine_type for part in parts})
    if unknown := sorted(set(machine_types or ()) - set(known)):
        raise ValueError(f"machine_types {unknown} are not in {name}. It holds: {listed(known)}.")
    selected = [
        part
        for part in parts
        if (machine_types is None or part.machine_type in machine_types)
        and (subsets is None or part.subset in subsets)
    ]
    if not selected:
        there = sorted({part.subset for part in parts})
        raise FileNotFoundError(
            f"{name} holds no clips of subsets={listed(subsets or SUBSETS)} and "
            f"machine_types={listed(machine_types or known)}. It has {listed(there)}."
        )
    return selected


def listed(values: Iterable[object]) -> str:
    """Return values as messages name them: 'fan', 'valve'."""
    return ", ".join(repr(value) if isinstance(value, str) else str(value) for value in values)

"""Names that every part shares: the columns of a row, their vocabulary, and how a machine is named.

A leaf: it imports nothing but the standard library, so that `data_scripts` may use it too.
"""

from collections.abc import Iterable
from typing import NamedTuple

# A two-channel recording holds the pair: which channel is which microphone. The same fact for code
# that travels with a checkpoint is `CHANNELS` in modeling/feature_extraction_asd.py.
NEAR, FAR = 0, 1

DOMAINS = ("source", "target")
CONDITIONS = ("normal", "anomaly")
UNKNOWN = -1  # a ClassLabel on disk that its file name does not give; None in Python

COLUMNS = (
    "near",
    "far",
    "file_name",
    "machine_type",
    "section",
    "domain",
    "condition",
    "attributes",
    "year",
)


def domain_label(domain: str | None) -> int:
    """Return a domain as a model takes it: 0 = source, 1 = target, -1 = unknown."""
    return UNKNOWN if domain is None else DOMAINS.index(domain)


class GroundTruth(NamedTuple):
    """What the name of a clip of an evaluation set does not tell.

    Attributes:
        condition: "normal" or "anomaly".
        domain: "source", "target", or None where there are no domains (2020).
    """

    condition: str
    domain: str | None


def machine_name(year: int, machine_type: str, section: int) -> str:
    """Return a machine's full name, as in files and tables: "2026/fan/00"."""
    return f"{year}/{machine_type}/{section:02d}"


def resolve_machine(name: str, known: Iterable[str]) -> str:
    """Return the one known machine that `name` means: a full name, or a bare machine type.

    Raises:
        KeyError: No machine, or more than one, goes by that name.
    """
    machines = sorted(set(known))
    if name in machines:
        return name
    matches = [machine for machine in machines if name == machine.split("/")[1]]
    if len(matches) == 1:
        return matches[0]
    listed = ", ".join(repr(machine) for machine in matches or machines) or "none"
    problem = "means more than one machine" if matches else "is not a machine here"
    raise KeyError(f"{name!r} {problem}. Choose from: {listed}.")

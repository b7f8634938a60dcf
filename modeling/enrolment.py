"""A machine of one's own from minutes of its normal sound: windows, stretches, and honest notes."""

import math
import os
import re
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
from numpy.typing import NDArray

WINDOW_SECONDS = 10.0  # as long as the challenge's clips
NUM_STRETCHES = 5
# One window in ten is beyond what nine in ten stay below, and with a stretch left out some more.
# A stretch is unlike the rest where a quarter would make what is found this unlikely.
COMMON, UNLIKELY = 0.25, 0.01
# Fewer than 20 windows cannot say a p-value of 0.05; sound of less than a minute is one moment.
FEWEST_WINDOWS, FEWEST_SECONDS = 20, 60.0
LOCAL = "local"  # in place of a year, in the full name of an enrolled machine
THRESHOLDS = re.compile(
    r"^\| machine \| threshold \|\n\| --- \| --- \|\n(?P<rows>(?:\|.*\n)*)", re.MULTILINE
)


class Recording(NamedTuple):
    """Normal sound of a machine.

    Attributes:
        name: Of its file, or its number.
        near: (num_samples,).
        far: The same, or None.
    """

    name: str
    near: NDArray[Any]
    far: NDArray[Any] | None


class Enrolment(NamedTuple):
    """What became of a machine that was enrolled.

    Attributes:
        machine: Its full name in the bank, "local/<name>/00".
        num_references: Windows in the bank.
        seconds: Of sound that they hold.
        threshold: The score above which its clips are anomalous.
        notes: What makes the verdicts on it doubtful, a sentence each; empty if nothing was found.
    """

    machine: str
    num_references: int
    seconds: float
    threshold: float | None
    notes: list[str]


class WindowTable(NamedTuple):
    """Embedded windows, as `ReferenceBank.enroll` takes them."""

    embedding: NDArray[np.float32]
    file_names: list[str]
    machines: list[str]
    domains: list[str | None]
    conditions: list[str]

    def take(self, rows: NDArray[np.intp]) -> "WindowTable":
        """Return some rows."""
        return WindowTable(
            self.embedding[rows],
            [self.file_names[i] for i in rows],
            [self.machines[i] for i in rows],
            [self.domains[i] for i in rows],
            [self.conditions[i] for i in rows],
        )


def cut_windows(
    recordings: Sequence[Recording], *, sampling_rate: int, seconds: float
) -> list[Recording]:
    """Return the recordings in windows, in the order of time; a short one is its own window.

    A recording is cut into as many equal windows as are no shorter than `seconds`, so that nothing
    of it is left over (but for less than one sample a window).

    Args:
        recordings: In the order they were made.
        sampling_rate: In hertz.
        seconds: Length of a window.

    Raises:
        ValueError: There are none, `seconds` is not positive, a recording is silent, or only some
            have a far microphone.
    """
    if not recordings:
        raise ValueError("There are no recordings. Give minutes of the machine's normal sound.")
    if not seconds > 0:
        raise ValueError(f"window_seconds={seconds} must be positive.")
    if len({recording.far is None for recording in recordings}) > 1:
        without = next(recording.name for recording in recordings if recording.far is None)
        raise ValueError(
            f"{without} has no far microphone, but others have. Give it to all or none."
        )
    length, windows = round(seconds * sampling_rate), []
    for name, near, far in recordings:
        count = max(1, len(near) // length)
        size = len(near) // count
        for start in range(0, count * size, size):
            inside = slice(start, start + size)
            if not np.any(near[inside]):
                raise ValueError(
                    f"{name} is silent from {start / sampling_rate:.1f} s on. A machine at rest is "
                    "no reference: leave the silence out, and check the microphone."
                )
            span = f"{start / sampling_rate:.1f}-{(start + size) / sampling_rate:.1f} s"
            title = name if count == 1 else f"{name} [{span}]"
            windows.append(Recording(title, near[inside], None if far is None else far[inside]))
    return windows


def stretches(num_windows: int) -> list[NDArray[np.intp]]:
    """Return the windows of each stretch of time, each left out of the bank once for the threshold.

    Neighbouring windows sound alike, whatever the machine does later: to leave out one window and
    keep its neighbours would flatter the bank.

    Raises:
        ValueError: There are fewer than three windows.
    """
    if num_windows < 3:
        raise ValueError(
            f"The recordings give {num_windows} window{'s' if num_windows != 1 else ''}, and three "
            "are the least. Record minutes of normal sound, or give a smaller window_seconds."
        )
    return np.array_split(np.arange(num_windows), min(NUM_STRETCHES, num_windows))


def too_little(num_windows: int, seconds: float) -> list[str]:
    """Return a note where there is less sound than a threshold needs."""
    if num_windows >= FEWEST_WINDOWS and seconds >= FEWEST_SECONDS:
        return []
    return [
        f"Too little: the threshold rests on {num_windows} windows of {seconds:.0f} s in all, and "
        f"no p-value can be below {1 / (num_windows + 1):.2f}. Enrol again with {FEWEST_WINDOWS} "
        f"windows and {FEWEST_SECONDS:.0f} s or more."
    ]


def too_varied(
    names: Sequence[str],
    held_out: NDArray[np.floating[Any]],
    limit: float,
) -> list[str]:
    """Return a note for each stretch that sounds unlike all the others.

    Args:
        names: Of the windows.
        held_out: (N,) their scores by a bank without their stretch.
        limit: What nine windows in ten stay below by a bank that lacks that window only.
    """
    notes = []
    for rows in stretches(len(names)):
        beyond = int((held_out[rows] > limit).sum())
        if chance(beyond, len(rows)) < UNLIKELY:
            notes.append(
                f"Too varied: {beyond} of {len(rows)} windows from {names[rows[0]]} to "
                f"{names[rows[-1]]} sound unlike all the rest. Record more of this kind of "
                "running, or leave it out if it was not normal."
            )
    return notes


def chance(beyond: int, count: int) -> float:
    """Return how likely so many of `count` windows are beyond, were a share of COMMON usual."""
    return sum(
        math.comb(count, k) * COMMON**k * (1 - COMMON) ** (count - k)
        for k in range(beyond, count + 1)
    )


def tell_enrolled(path: Path, thresholds: Mapping[str, float | None]) -> None:
    """Write the enrolled machines of a bank into the card beside it, if it has such a table.

    Args:
        path: Of the card, which need not be there.
        thresholds: Of every machine of the bank; rows of machines that were not enrolled stay.
    """
    if not path.is_file():
        return
    card = path.read_text(encoding="utf-8")
    told = with_enrolled(card, thresholds)
    if told == card:
        return
    partial = path.with_name(f".{path.name}.{os.getpid()}")
    try:
        partial.write_text(told, encoding="utf-8")
        partial.replace(path)
    finally:
        partial.unlink(missing_ok=True)


def with_enrolled(card: str, thresholds: Mapping[str, float | None]) -> str:
    """Return a card whose table of thresholds has a bank's enrolled machines, and no others."""
    table = THRESHOLDS.search(card)
    if table is None:
        return card
    rows = [row for row in table["rows"].splitlines() if not row.startswith(f"| {LOCAL}/")]
    for machine, threshold in sorted(thresholds.items()):
        if machine.startswith(f"{LOCAL}/"):
            name = " ".join(machine.split()).replace("|", "\\|")
            rows.append(f"| {name} | {'none' if threshold is None else f'{threshold:.4f}'} |")
    text = "".join(f"{row}\n" for row in rows)
    return card[: table.start("rows")] + text + card[table.end("rows") :]


__all__ = [
    "LOCAL",
    "WINDOW_SECONDS",
    "Enrolment",
    "Recording",
    "WindowTable",
    "cut_windows",
    "stretches",
    "tell_enrolled",
    "too_little",
    "too_varied",
]

"""A machine of one's own from a few minutes of normal sound, without training."""

from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from demo.detector import LOCAL, WINDOW_SECONDS, Detector, windows_of
from demo.recordings import Recording
from modeling import ReferenceBank
from nearfar.embeddings import EmbeddingTable

NUM_FOLDS = 5
LEAST_WINDOWS = 6  # one minute
ENOUGH_WINDOWS = 30  # five minutes
MAX_SECONDS = 900.0
# How much further off a stretch may be scored when nothing beside it is a reference, against when
# its neighbours are. Steady machines stay near 1.
VARIED = 2.0
LONGEST_NAME = 40


class EnrolmentError(ValueError):
    """Recordings that no bank can be made of; the message is for the person who gave them."""


@dataclass(frozen=True, eq=False)
class Enrolment:
    """A machine that a user enrolled.

    Attributes:
        machine: Full name.
        bank: Holds this machine alone; its threshold is cross-fitted over stretches of time.
        num_windows: References.
        spread: How much further off a stretch is scored without its neighbours; see `VARIED`.
        cautions: What the user should know, empty if all is well.
    """

    machine: str
    bank: ReferenceBank
    num_windows: int
    spread: float
    cautions: tuple[str, ...]

    def as_json(self) -> dict[str, Any]:
        """Return plain values."""
        return {
            "machine": self.machine,
            "num_references": self.num_windows,
            "threshold": self.bank.threshold(self.machine),
            "smallest_p_value": 1 / (self.num_windows + 1),
            "spread": self.spread,
            "cautions": list(self.cautions),
        }


def enroll(detector: Detector, name: str, given: Iterable[Recording]) -> Enrolment:
    """Make a bank of one machine from recordings of its normal sound.

    Windows that follow each other sound alike, so each is scored by references from elsewhere in
    time: the windows are cut, in order, into `NUM_FOLDS` stretches, and a stretch is scored by the
    others alone. Those scores give threshold and p-values.

    Args:
        detector: Its encoder and its kind of scoring are used as they are.
        name: Of the machine.
        given: Recordings of normal sound, in order of time; best from several occasions. No more
            of them are taken than may be used.

    Raises:
        EnrolmentError: Too little or too much sound, recordings with and without a far microphone,
            or an impossible name.
    """
    machine = machine_called(name)
    if detector.model.reads_machines:
        raise EnrolmentError(
            "This detector has one network for each machine it was trained on, so it cannot take "
            "another one without training. Use a detector that compares with references."
        )
    recordings: list[Recording] = []
    seconds = 0.0
    for recording in given:
        recordings.append(recording)
        seconds += recording.seconds
        if seconds > MAX_SECONDS:
            raise EnrolmentError(
                f"This is {seconds / 60:.0f} minutes of sound or more, at most "
                f"{MAX_SECONDS / 60:.0f} are taken here. Leave some out."
            )
    if len({recording.far is None for recording in recordings}) > 1:
        raise EnrolmentError(
            "Some of these recordings have a far microphone and some have not. Give all of them "
            "with, or all without: the detector hears the difference."
        )
    parts = [part for recording in recordings for part in _full_windows(recording)]
    if len(parts) < LEAST_WINDOWS:
        raise EnrolmentError(
            f"This is {len(parts) * WINDOW_SECONDS:.0f} s of sound in whole windows of "
            f"{WINDOW_SECONDS:.0f} s, but a threshold needs {LEAST_WINDOWS * WINDOW_SECONDS:.0f} s "
            "at least, and five minutes are good. Record for longer."
        )
    table = _table(detector, machine, parts)
    stretches = np.array_split(np.arange(len(parts)), NUM_FOLDS)
    folds = [
        (table.take(np.setdiff1d(np.arange(len(parts)), held_out)), table.take(held_out))
        for held_out in stretches
    ]
    bank = _new_bank(detector, len(parts)).fit(table, folds=folds)
    neighbours = _new_bank(detector, len(parts)).fit(table, frozen_encoder=True)
    apart = float(bank.calibration_scores(machine).median())
    beside = float(neighbours.calibration_scores(machine).median())
    spread = apart / max(beside, 1e-6)
    return Enrolment(machine, bank, len(parts), spread, _cautions(recordings, len(parts), spread))


def machine_called(name: str) -> str:
    """Return the full name of a user's machine.

    Raises:
        EnrolmentError: It cannot be a name.
    """
    plain = " ".join(name.split())
    if not plain or len(plain) > LONGEST_NAME or "/" in plain or not plain.isprintable():
        raise EnrolmentError(
            f"A machine's name has 1 to {LONGEST_NAME} printable characters and no slash, got "
            f"{name[:60]!r}. Choose another."
        )
    return f"{LOCAL}/{plain}/00"


def _cautions(recordings: Sequence[Recording], num_windows: int, spread: float) -> tuple[str, ...]:
    cautions = []
    if num_windows < ENOUGH_WINDOWS:
        minutes = num_windows * WINDOW_SECONDS / 60
        cautions.append(
            f"{minutes:.1f} minutes are little: with {num_windows} references no p-value can be "
            f"below {1 / (num_windows + 1):.2f}, and the threshold is rough. Five minutes are good."
        )
    if spread > VARIED:
        cautions.append(
            f"The recordings vary: a stretch scores {spread:.1f} times as high when the sound "
            "around it is left out. The threshold is wide for it, so faults may pass. Record each "
            "way the machine runs on several occasions, or enrol them as machines of their own."
        )
    if len(recordings) == 1:
        cautions.append(
            "All of it is one recording. Another day's background may look like a fault: add "
            "recordings from other occasions."
        )
    notes = dict.fromkeys(note for recording in recordings for note in recording.notes)
    return (*cautions, *notes)


def _full_windows(recording: Recording) -> list[Recording]:
    """Return the windows of full length that do not overlap."""
    parts, heard_until = [], 0.0
    for start, part in windows_of(recording):
        if start >= heard_until and part.seconds >= WINDOW_SECONDS:
            parts.append(part)
            heard_until = start + WINDOW_SECONDS
    return parts


def _table(detector: Detector, machine: str, parts: Sequence[Recording]) -> EmbeddingTable:
    rows = [
        {
            "file_name": f"{number:03d} {part.name}",
            "machine": machine,
            "domain": None,
            "condition": "normal",
            "attributes": "",
        }
        for number, part in enumerate(parts, start=1)
    ]
    return EmbeddingTable.from_clips(detector.embed(parts, machine), rows)


def _new_bank(detector: Detector, num_windows: int) -> ReferenceBank:
    bank = detector.bank
    provenance = {"enrolled_in": "demo", "num_windows": num_windows}
    return ReferenceBank(
        bank,
        fingerprint=bank.fingerprint,
        provenance=provenance,
        threshold=bank.threshold_name,
        threshold_quantile=bank.threshold_quantile,
    )

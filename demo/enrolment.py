"""A machine of one's own from a few minutes of normal sound: `pipe.enroll` for strangers' files."""

from collections.abc import Iterable
from dataclasses import dataclass
from typing import Any

from demo.detector import Detector, row_of
from demo.recordings import Recording
from modeling import ReferenceBank

LEAST_SECONDS = 60.0
MAX_SECONDS = 900.0
LONGEST_NAME = 40


class EnrolmentError(ValueError):
    """Recordings that no bank can be made of; the message is for the person who gave them."""


@dataclass(frozen=True, eq=False)
class Enrolment:
    """A machine that a user enrolled.

    Attributes:
        machine: Full name.
        bank: Holds this machine alone.
        num_references: Windows in it.
        threshold: The score above which its windows are anomalous.
        cautions: What the user should know, empty if all is well.
    """

    machine: str
    bank: ReferenceBank
    num_references: int
    threshold: float
    cautions: tuple[str, ...]

    def as_json(self) -> dict[str, Any]:
        """Return plain values."""
        return {
            "machine": self.machine,
            "num_references": self.num_references,
            "threshold": self.threshold,
            "smallest_p_value": 1 / (self.num_references + 1),
            "cautions": list(self.cautions),
        }


def enroll(detector: Detector, name: str, given: Iterable[Recording]) -> Enrolment:
    """Make a bank of one machine from recordings of its normal sound, as the pipeline enrols.

    Args:
        detector: Its encoder and its kind of scoring are used; its own bank stays as it is.
        name: Of the machine.
        given: Recordings of normal sound, in order of time; best from several occasions. No more
            of them are taken than may be used.

    Raises:
        EnrolmentError: Too little or too much sound, or an impossible name.
        ValueError: What the pipeline's `enroll` refuses.
    """
    title = checked_name(name)
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
    if seconds < LEAST_SECONDS:
        raise EnrolmentError(
            f"This is {seconds:.0f} s of sound, but a threshold needs {LEAST_SECONDS:.0f} s at "
            "least, and five minutes are good. Record for longer."
        )
    bank = _empty_bank(detector)
    enrolled = detector.pipeline(bank).enroll(
        title, [row_of(recording) for recording in recordings]
    )
    cautions = list(enrolled.notes)
    if len(recordings) == 1:
        cautions.append(
            "All of it is one recording. Another day's background may look like a fault: add "
            "recordings from other occasions."
        )
    cautions += dict.fromkeys(note for recording in recordings for note in recording.notes)
    return Enrolment(
        enrolled.machine,
        bank,
        enrolled.num_references,
        bank.threshold(enrolled.machine),
        tuple(cautions),
    )


def checked_name(name: str) -> str:
    """Return a user's name of a machine, without needless spaces.

    Raises:
        EnrolmentError: It cannot be a name.
    """
    plain = " ".join(name.split())
    printable = plain.isprintable() and "/" not in plain and any(map(str.isalnum, plain))
    if not printable or len(plain) > LONGEST_NAME:
        raise EnrolmentError(
            f"A machine's name has 1 to {LONGEST_NAME} printable characters, a letter or a number "
            f"among them and no slash, got {name[:60]!r}. Choose another."
        )
    return plain


def _empty_bank(detector: Detector) -> ReferenceBank:
    """Return a bank that scores as the detector's does and holds no machine."""
    return ReferenceBank(
        detector.bank,
        fingerprint=detector.bank.fingerprint,
        extractor=detector.feature_extractor,
        provenance={"enrolled_in": "demo"},
        threshold=detector.bank.threshold_name,
        threshold_quantile=detector.bank.threshold_quantile,
    )

"""What the page and its API do, in terms of texts, files and plain values; no Gradio in here."""

import base64
import os
import shutil
import threading
from collections.abc import Iterator, Sequence
from html import escape
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import soundfile

from demo.comparison import MAX_CLIPS, Comparison, Progress, compare
from demo.detector import Detector, Verdict
from demo.enrolment import Enrolment, EnrolmentError, checked_name, enroll
from demo.pictures import message, number, references_panel, sound_panels, verdict_card
from demo.recordings import Recording, read_recording
from demo.shelf import Shelf
from demo.sounds import Sounds, spoken
from modeling import ReferenceBank
from modeling.reference_bank import LOCAL, UnknownMachineError, local_machine
from nearfar.schema import NEAR

Session = dict[str, ReferenceBank]  # machines that one user enrolled, each with its bank

# What a user can cause; anything else is a defect and goes to the log.
USER_ERRORS = (ValueError, KeyError, FileNotFoundError)

MAX_ENROLLED = 5  # machines per session
MAX_FILES = 20  # of an enrolment
MAX_WORKERS = 4
CAPTIONS = {
    "near": "at the machine",
    "far": "in the room",
    "cleaned": "what the detector hears",
}
HINT = message(
    "Choose a machine and give a recording, or press an example. The verdict appears here.",
    kind="idle",
)


class MachineError(ValueError):
    """A machine that neither the detector nor this user has; the message is for the user."""


class Answer(NamedTuple):
    """What the page shows of a recording; None leaves a part as it is."""

    verdict: str | None
    sounds: str | None
    references: str | None


class Actions:
    """Everything a user can do, for all users; what belongs to one of them is passed in.

    Args:
        detector: The system that is shown.
        sounds: Where references and examples can be heard.
        shelf: Keeps what players and downloads need.
        workers: How many recordings are read and judged at once; the rest wait without being read,
            so that this bounds memory. Whoever draws does not keep others from their verdicts: one
            explanation is drawn at a time, beside them.
    """

    def __init__(
        self, detector: Detector, sounds: Sounds, shelf: Shelf, *, workers: int | None = None
    ) -> None:
        self.detector = detector
        self.sounds = sounds
        self.shelf = shelf
        self.workers = default_workers() if workers is None else workers
        self._judging = threading.Semaphore(self.workers)
        self._drawing = threading.Semaphore(1)

    def choices(self, session: Session | None = None) -> list[tuple[str, str]]:
        """Return the machines to choose from: how they are called, and their full names."""
        names = [*self.detector.bank.machines, *sorted(session or {})]
        called = [spoken(name) for name in names]
        return [
            (f"{call} {name}" if called.count(call) > 1 else call, name)
            for call, name in zip(called, names, strict=True)
        ]

    def machines(self, session: Session | None) -> list[dict[str, Any]]:
        """Return what is known of each machine of the bank and of the session."""
        described = []
        for _, name in self.choices(session):
            bank = self._bank_of(name, session)
            described.append(
                {
                    "machine": name,
                    "threshold": bank.threshold(name),
                    "num_calibration": len(bank.calibration_scores(name)),
                    "front_end_strength": bank.front_end_strength(name),
                }
            )
        return described

    def judge(
        self,
        machine: str | None,
        near: str | None,
        far: str | None,
        session: Session | None,
    ) -> tuple[Verdict, Recording]:
        """Judge an uploaded recording; raises one of `USER_ERRORS`. See `Detector.judge`."""
        with self._judging:
            recording = read_recording(near, far)
            return self.detector.judge(recording, *self._known(machine, session))

    def listen(
        self, machine: str | None, near: str | None, far: str | None, session: Session | None
    ) -> Iterator[Answer]:
        """Judge an uploaded recording; the verdict comes first, what explains it after it."""
        try:
            verdict, sound = self.judge(machine, near, far, session)
        except USER_ERRORS as error:
            yield Answer(message(said(error)), "", "")
            return
        bank = self._bank_of(verdict.machine, session)
        scores = bank.calibration_scores(verdict.machine).tolist()
        card = verdict_card(verdict, spoken(verdict.machine), scores)
        yield Answer(card, "", "")
        with self._drawing:
            panels = self._panels(sound, verdict.machine, bank)
        yield Answer(None, panels, None)
        with self._drawing:
            references = self._references(verdict)
        yield Answer(None, None, references)

    def enroll(
        self, name: str | None, files: Sequence[str] | None, session: Session | None
    ) -> tuple[Enrolment, Session, Path]:
        """Enrol a machine; return it, the session that has it, and its bank as a zip.

        Raises one of `USER_ERRORS`.
        """
        session = dict(session or {})
        if not files:
            raise EnrolmentError(
                "There is no recording yet. Drop WAV or FLAC files of the machine's normal sound, "
                "five minutes in all."
            )
        if len(files) > MAX_FILES:
            raise EnrolmentError(f"{len(files)} files came, at most {MAX_FILES} are taken here.")
        machine = local_machine(checked_name(name or ""))
        if machine not in session and len(session) >= MAX_ENROLLED:
            raise EnrolmentError(
                f"This session has {MAX_ENROLLED} machines of its own already. Download their "
                "banks and reload the page to start anew, or use one of their names again."
            )
        with self._judging:
            enrolment = enroll(self.detector, name or "", map(read_recording, files))
        session[enrolment.machine] = enrolment.bank
        folder = self.shelf.new_folder()
        enrolment.bank.save_pretrained(folder / "bank")
        archive = Path(shutil.make_archive(str(folder / "reference_bank"), "zip", folder / "bank"))
        return enrolment, session, archive

    def compare(
        self, files: Sequence[str] | None, machine: str | None, progress: Progress
    ) -> Comparison:
        """Score and evaluate many test clips; raises one of `USER_ERRORS`."""
        paths = [Path(file) for file in files or ()]
        folder = self.shelf.new_folder()
        return compare(self.detector, paths, folder, machine=machine or None, progress=progress)

    def _bank_of(self, machine: str, session: Session | None) -> ReferenceBank:
        return (session or {}).get(machine, self.detector.bank)

    def _known(self, machine: object, session: Session | None) -> tuple[str, ReferenceBank]:
        """Return the full name of a user's machine, whatever was given for it, and its bank."""
        given, own = str(machine or ""), session or {}
        for name in (given, f"{LOCAL}/{given}/00"):
            if name in own:
                return name, own[name]
        try:
            return self.detector.bank.resolve(given or None), self.detector.bank
        except UnknownMachineError as error:
            problem = (
                f"The detector has no machine {given[:60]!r}, or several of that name."
                if given
                else "Which machine is it?"
            )
            raise MachineError(
                f"{problem} It holds: {', '.join(name for _, name in self.choices(session))}. "
                "Choose one of these, or enrol your own on the tab Enrol."
            ) from error

    def _panels(self, sound: Recording, machine: str, bank: ReferenceBank) -> str:
        heard = {
            "near": sound.near,
            "far": sound.far,
            "cleaned": self.detector.cleaned(sound, machine, bank),
        }
        waveforms = {name: waveform for name, waveform in heard.items() if waveform is not None}
        urls = {name: self.shelf.sound_url(waveform) for name, waveform in waveforms.items()}
        drawn = self.detector.anomaly_map(sound, machine, bank)
        return sound_panels(waveforms, urls, CAPTIONS, drawn)

    def _references(self, verdict: Verdict) -> str:
        players = {}
        for reference in verdict.nearest_references:
            name = str(reference["file_name"])
            path = self.sounds.find(verdict.machine, name)
            if path is not None:
                samples, _ = soundfile.read(path, dtype="float32", always_2d=True)
                players[name] = self.shelf.sound_url(np.ascontiguousarray(samples[:, NEAR]))
        return references_panel(
            verdict.nearest_references,
            players,
            "A bank holds no sound, and this recording is not on this computer.",
        )


def default_workers() -> int:
    """Return how many recordings are judged at once: one for each core, up to a few.

    More threads for one recording gain little, as its operations are small, and a batch of several
    recordings gains nothing on a CPU.
    """
    return min(MAX_WORKERS, os.cpu_count() or 1)


def enrolment_card(enrolment: Enrolment) -> str:
    """Return what came of an enrolment, in words."""
    text = (
        f"{spoken(enrolment.machine)} is ready: {enrolment.num_references} references, threshold "
        f"{number(enrolment.threshold)}. It is chosen on the tab Listen, and gone when this page "
        "is closed, unless you download its bank."
    )
    cautions = "".join(f"<li>{escape(caution)}</li>" for caution in enrolment.cautions)
    return message(text, kind="open" if cautions else "good") + (
        f'<section class="nf-cautions"><h3>Before you trust it</h3><ul>{cautions}</ul></section>'
        if cautions
        else ""
    )


def comparison_report(comparison: Comparison) -> str:
    """Return metrics, plots and the scores of all clips as HTML."""
    metrics, table = comparison.metrics, comparison.table
    official = metrics["official_score"]
    head = f"{len(table)} clips scored."
    why_none = ""
    if official is None:
        why_none = f'<p class="nf-note">{escape(metrics["reason"])}</p>'
    else:
        head += f" Official score {100 * official:.2f} over {len(table.machine_names)} machines."
    keys = {"auc_source": "source AUC", "auc_target": "target AUC", "pauc": "pAUC"}
    rows = []
    for machine, values in metrics["machines"].items():
        cells = "".join(f"<td>{_percent(values[key])}</td>" for key in keys)
        counts = f"<td>{values['num_normal']}</td><td>{values['num_anomalous']}</td>"
        rows.append(f"<tr><th scope='row'>{escape(machine)}</th>{cells}{counts}</tr>")
    heads = "".join(f"<th scope='col'>{name}</th>" for name in ("machine", *keys.values()))
    heads += "<th scope='col'>normal</th><th scope='col'>anomalous</th>"
    plots = "".join(
        f'<img class="nf-plot" src="data:image/png;base64,{base64.b64encode(png).decode()}" '
        f'alt="{escape(f"Histogram of the scores of {machine}, and its ROC curve")}">'
        for machine, png in comparison.plots.items()
    )
    clips = []
    for i in np.argsort(-table.anomaly_scores)[:MAX_CLIPS]:
        decision = {None: "", 0: "normal", 1: "anomalous"}[table.decisions[i]]
        p_value = "" if np.isnan(table.p_values[i]) else f"{table.p_values[i]:.2f}"
        clips.append(
            f"<tr><th scope='row'>{escape(table.file_names[i])}</th>"
            f"<td>{escape(table.machines[i])}</td><td>{table.conditions[i] or 'unknown'}</td>"
            f"<td>{table.anomaly_scores[i]:.4f}</td><td>{p_value}</td><td>{decision}</td></tr>"
        )
    clip_heads = "".join(
        f"<th scope='col'>{name}</th>"
        for name in ("clip", "machine", "truth", "score", "p-value", "decision")
    )
    return (
        message(head, kind="good")
        + _table("Metrics in per cent", heads, rows)
        + why_none
        + plots
        + "<details class='nf-details'><summary>All clips, the most anomalous first</summary>"
        + _table("Scores of all clips", clip_heads, clips)
        + "</details>"
    )


def machines_table(actions: Actions) -> str:
    """Return what the detector has heard, machine by machine, as HTML."""
    references = actions.detector.num_references
    rows = []
    for row in actions.machines(None):
        name = row["machine"]
        threshold = "none" if row["threshold"] is None else number(row["threshold"])
        rows.append(
            f"<tr><th scope='row'>{escape(spoken(name))}</th><td>{escape(name)}</td>"
            f"<td>{references[name]}</td><td>{row['num_calibration']}</td><td>{threshold}</td></tr>"
        )
    heads = "".join(
        f"<th scope='col'>{head}</th>"
        for head in ("machine", "full name", "references", "set aside for thresholds", "threshold")
    )
    return _table("What this detector has heard, all of it normal", heads, rows)


def said(error: Exception) -> str:
    """Return an error's own words; a KeyError shows its in quotes."""
    return str(error.args[0]) if isinstance(error, KeyError) and error.args else str(error)


def _table(caption: str, heads: str, rows: Sequence[str]) -> str:
    return (
        f'<div class="nf-table" tabindex="0" role="region" aria-label="{escape(caption)}"><table>'
        f"<caption>{escape(caption)}</caption><thead><tr>{heads}</tr></thead>"
        f"<tbody>{''.join(rows)}</tbody></table></div>"
    )


def _percent(value: float | None) -> str:
    return "-" if value is None else f"{100 * value:.2f}"

"""A run folder, loaded: judges recordings window by window, and says what it heard."""

from collections.abc import Mapping
from dataclasses import asdict, dataclass
from functools import lru_cache
from pathlib import Path
from typing import Any, NamedTuple

import httpx
import numpy as np
import torch
from huggingface_hub import snapshot_download
from huggingface_hub.errors import HfHubHTTPError
from numpy.typing import NDArray

from assembly.scorers import ModelScorer, load_scorer
from data_scripts.clip_files import SAMPLING_RATE
from demo.recordings import Recording, window_starts
from modeling import AnomalousSoundDetectionPipeline, AsdModel, ReferenceBank
from nearfar.files import read_json

WINDOW_SECONDS = 10.0
NUM_NEAREST = 3
MAX_PIPELINES = 64  # kept, each with its bank; any other is made anew when it is needed


class WindowVerdict(NamedTuple):
    """The verdict on one window: where it lies, in seconds, and its `Decision`."""

    start_seconds: float
    end_seconds: float
    anomaly_score: float
    anomalous: bool | None
    p_value: float | None


@dataclass(frozen=True)
class Verdict:
    """The verdict on a recording: that on its median window.

    Attributes:
        recording: Name of the file.
        machine: Full name.
        anomaly_score: Of the window with the (upper) median score; a single window's own.
        threshold: Above it a window is anomalous; None if the machine has no calibration clips.
        anomalous: Whether the score exceeds the threshold; None without one.
        p_value: Of the score; None without calibration clips.
        num_calibration: Normal clips that threshold and p-value come from.
        expected_share: Share of a normal machine's windows that exceeds the threshold.
        windows: In order of time.
        shown: Index of the most anomalous window, whose sound and pictures are shown.
        nearest_references: Of that window: file_name, domain, distance.
        notes: What the listener should know.
    """

    recording: str
    machine: str
    anomaly_score: float
    threshold: float | None
    anomalous: bool | None
    p_value: float | None
    num_calibration: int
    expected_share: float
    windows: tuple[WindowVerdict, ...]
    shown: int
    nearest_references: tuple[Mapping[str, Any], ...]
    notes: tuple[str, ...]

    def as_json(self) -> dict[str, Any]:
        """Return plain values."""
        windows = [window._asdict() for window in self.windows]
        return asdict(self) | {"windows": windows, "notes": list(self.notes)}


class Detector:
    """A model with its bank, for many users at once: nothing of a user is kept in it.

    Args:
        scorer: The system as score.py loads it.
        card: Its model card, Markdown without the header.
        num_references: Of each machine of its bank.
        name: How the page calls it.
    """

    def __init__(
        self, scorer: ModelScorer, *, card: str, num_references: Mapping[str, int], name: str
    ) -> None:
        self.device = torch.device("cuda" if torch.cuda.is_available() else "cpu")
        self.scorer = scorer
        self.model = scorer.model.to(self.device).eval()
        self.feature_extractor = scorer.feature_extractor
        self.bank = scorer.bank
        self.card = card
        self.num_references = dict(num_references)
        self.name = name
        # Making one asks the model whether the bank is its own: a fifth of a verdict's time.
        self.pipeline = lru_cache(maxsize=MAX_PIPELINES)(self._pipeline)

    @classmethod
    def load(cls, run_or_repo: str | Path) -> "Detector":
        """Load a run folder, or a repository of the Hub, with the local classes.

        Raises:
            FileNotFoundError: It is neither, or not complete.
            ValueError: It is a fusion, which has no single bank to show, or is damaged.
        """
        folder = Path(run_or_repo)
        if not folder.is_dir():
            folder = _downloaded(str(run_or_repo))
        scorer = load_scorer(folder)
        if not isinstance(scorer, ModelScorer):
            raise ValueError(
                f"{run_or_repo} is a fusion, but the demo shows a single model with its reference "
                f"bank. Give one of its members, below {run_or_repo}."
            )
        card = (folder / "README.md").read_text(encoding="utf-8")
        held = read_json(folder / "reference_bank.json")["machines"]
        return cls(
            scorer,
            card=_without_header(card),
            num_references={name: len(machine["file_names"]) for name, machine in held.items()},
            name=folder.resolve().name,
        )

    @property
    def uses_far(self) -> bool:
        """Whether the model does anything with a far microphone."""
        config = self.model.config
        channels = getattr(config, "channels", ())
        cancels = getattr(config, "front_end", "near") != "near"
        return cancels or bool(set(channels) - {"near"}) or getattr(self.model, "reads_far", False)

    def judge(
        self,
        recording: Recording,
        machine: str | None,
        bank: ReferenceBank | None = None,
    ) -> tuple[Verdict, Recording]:
        """Judge a recording of a machine, and return its oddest window.

        Args:
            recording: Of any length; see `window_starts`.
            machine: A full name or a bare machine type.
            bank: One that a user enrolled, in place of the detector's own.

        Raises:
            UnknownMachineError: The bank does not hold the machine.
            ValueError: The recording cannot be used.
        """
        bank = bank or self.bank
        full_name = bank.resolve(machine)
        pipe = self.pipeline(bank)
        parts = list(windows_of(recording))
        rows = [row_of(part) for _, part in parts]
        results = [pipe(row, machine=full_name, num_nearest=NUM_NEAREST) for row in rows]
        scores = np.array([result["anomaly_score"] for result in results])
        median = int(np.argsort(scores, kind="stable")[len(scores) // 2])
        shown = int(scores.argmax())
        verdicts = tuple(
            WindowVerdict(
                start,
                start + part.seconds,
                result["anomaly_score"],
                result["anomalous"],
                result["p_value"],
            )
            for (start, part), result in zip(parts, results, strict=True)
        )
        rule = bank.rule(full_name)
        verdict = Verdict(
            recording=recording.name,
            machine=full_name,
            **{
                key: results[median][key]
                for key in ("anomaly_score", "threshold", "anomalous", "p_value")
            },
            num_calibration=len(bank.calibration_scores(full_name)),
            expected_share=0.0 if rule is None else 1 - rule["quantile"],
            windows=verdicts,
            shown=shown,
            nearest_references=tuple(results[shown]["nearest_references"]),
            notes=(*recording.notes, *self._notes(recording)),
        )
        return verdict, parts[shown][1]

    def anomaly_map(
        self, sound: Recording, machine: str, bank: ReferenceBank | None = None
    ) -> Mapping[str, Any] | None:
        """Return why a window scores as it does, as the pipeline's "map".

        It is of the cleaned sound, or else of near; None for a detector that cannot say.

        Args:
            sound: A window that was judged.
            machine: Its full name.
            bank: As for `judge`.
        """
        try:
            result: Any = self.pipeline(bank or self.bank)(row_of(sound), machine=machine, map=True)
        except ValueError:  # the sound has been judged, so it is the map that cannot be
            return None
        drawn: Mapping[str, Any] = result["map"]
        return drawn

    def cleaned(
        self, sound: Recording, machine: str, bank: ReferenceBank | None = None
    ) -> NDArray[np.float32] | None:
        """Return near as the encoder hears it, (num_samples,); None where that is near itself.

        Args:
            sound: A window that was judged.
            machine: Its full name.
            bank: As for `judge`.
        """
        strength = (bank or self.bank).front_end_strength(machine)
        if sound.far is None or not isinstance(self.model, AsdModel) or strength == 0:
            return None
        if self.model.config.front_end == "near":
            return None
        near, far = (torch.from_numpy(x)[None].to(self.device) for x in (sound.near, sound.far))
        mask = torch.ones_like(near, dtype=torch.long)
        with torch.inference_mode():
            heard = self.model.waveforms(near, far, mask, torch.tensor([strength]).to(near))
        cleaned: NDArray[np.float32] = heard["near"][0].cpu().numpy()
        return cleaned

    def _pipeline(self, bank: ReferenceBank) -> AnomalousSoundDetectionPipeline:
        """Return the pipeline with a bank, which its `enroll` adds to."""
        pipe = AnomalousSoundDetectionPipeline(
            self.model, feature_extractor=self.feature_extractor, device=self.device
        )
        pipe.reference_bank = bank
        return pipe

    def _notes(self, recording: Recording) -> list[str]:
        if recording.far is None and self.uses_far:
            return ["No far microphone: the room's noise could not be taken away."]
        return []


def windows_of(recording: Recording) -> list[tuple[float, Recording]]:
    """Return the windows of a recording, each with where it begins, in seconds."""
    window = int(WINDOW_SECONDS * SAMPLING_RATE)
    starts = window_starts(len(recording.near), window)
    length = window if len(starts) > 1 else len(recording.near)
    return [(start / SAMPLING_RATE, recording.part(start, start + length)) for start in starts]


def row_of(part: Recording) -> dict[str, Any]:
    """Return a recording as the pipeline takes it."""
    return {
        "near": part.near,
        "far": part.far,
        "sampling_rate": SAMPLING_RATE,
        "file_name": part.name,
    }


def _downloaded(repo_id: str) -> Path:
    """Return a repository of the Hub as a folder here."""
    try:
        return Path(snapshot_download(repo_id))
    except (HfHubHTTPError, httpx.HTTPError, OSError, ValueError) as error:
        reason = " ".join(str(error).split())
        raise FileNotFoundError(
            f"{repo_id} is no folder here, and no repository that can be had from the Hub "
            f"({reason}). Give a folder that train.py wrote, or the owner/name of a repository "
            "that you may read."
        ) from error


def _without_header(card: str) -> str:
    """Return a model card without its YAML."""
    if card.startswith("---\n") and "\n---\n" in card[4:]:
        return card[4:].split("\n---\n", 1)[1].strip()
    return card.strip()

"""The reference bank: what normal sounds like, per machine, and from where on a clip is anomalous.

It travels beside the model that made its embeddings, as reference_bank.safetensors (tensors) and
reference_bank.json (everything else).
"""

import hashlib
import inspect
import json
import logging
import os
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, NamedTuple, Protocol, Self

import numpy as np
import torch
from numpy.typing import NDArray
from safetensors.torch import load_file, save_file
from torch import Tensor, nn

from .calibration import (
    THRESHOLD_QUANTILE,
    Calibration,
    Decision,
    DomainPValue,
    ThresholdName,
    check_rule,
)
from .configuration_asd import FORMAT_VERSION
from .detector_base import check_choice
from .detectors import BANK_DETECTORS, Detector
from .enrolment import LOCAL
from .fingerprint import (
    FULL_PRECISION_TOLERANCE,
    HALF_PRECISION_TOLERANCE,
    encoder_fingerprint,
)
from .hub_files import fetch, push_files

TENSORS_NAME = "reference_bank.safetensors"
JSON_NAME = "reference_bank.json"

# What of a feature extractor changes how a clip is heard; the rest only refuses clips.
EXTRACTOR_SETTINGS = ("sampling_rate", "padding_value", "peak_normalize", "clip_seconds")

logger = logging.getLogger(__name__)


class UnknownMachineError(KeyError):
    """A machine that the bank does not hold, or a name that more than one machine goes by."""

    def __str__(self) -> str:
        return str(self.args[0])  # a KeyError would show the message in quotes


class Table(Protocol):
    """Embeddings of clips, one row per clip, as `nearfar.embeddings.EmbeddingTable` holds them."""

    @property
    def embedding(self) -> NDArray[np.float32]:
        """(N, views, bands, size)."""

    @property
    def file_names(self) -> NDArray[Any] | Sequence[str]:
        """N base names."""

    @property
    def machines(self) -> NDArray[Any] | Sequence[str]:
        """N full names, such as "2026/fan/00"."""

    @property
    def domains(self) -> NDArray[Any] | Sequence[str | None]:
        """N times "source", "target" or None."""

    @property
    def conditions(self) -> NDArray[Any] | Sequence[str | None]:
        """N times "normal", "anomaly" or None; for None the caller vouches that it is normal."""


class DetectorChoice(Protocol):
    """The part of an `AsdConfig` that a bank reads."""

    @property
    def detector(self) -> str:
        """A key of `BANK_DETECTORS`."""

    @property
    def detector_options(self) -> dict[str, Any] | None:
        """Keyword arguments of its constructor."""


class _Clips(NamedTuple):
    """Rows of a table: embedding (N, views, bands, size) and N of everything else."""

    embedding: Tensor
    file_names: list[str]
    domains: list[str | None]
    conditions: list[str | None]


@dataclass(frozen=True)
class _Machine:
    """One machine's references, and what its calibration clips say."""

    detector: Detector
    file_names: list[str]
    domains: list[str | None]
    calibration: Calibration


@dataclass(frozen=True)
class _StoredDetectorChoice:
    detector: str
    detector_options: dict[str, Any] | None


class ReferenceBank:
    """Fitted detectors, thresholds and the guard's decisions of several machines.

    A machine is written "2026/fan/00"; every method also takes the bare machine type where that is
    unambiguous, and None where the bank holds a single machine. Nothing is learned outside `fit`
    and `enroll`, and those refuse clips that are marked as anomalies.

    Thresholds and p-values come from calibration clips: normal, and of neither the encoder's
    training nor the bank: held out, or each scored by an encoder and a bank made without it (`fit`,
    folds). The threshold is the 0.9 quantile of their scores, so that about one new normal clip in
    ten lies above it. A machine without calibration clips gets scores but no verdict, unless the
    encoder is frozen, never saw the references, and `frozen_encoder=True` says so: then each
    reference is scored by the others instead.

    Args:
        config: An `AsdConfig`; its detector and that detector's options are used.
        fingerprint: What `encoder_fingerprint` says of the model that makes the embeddings.
        extractor: The feature extractor before it, whose `EXTRACTOR_SETTINGS` the bank keeps.
        guard: Front-end strength in [0, 1] of each machine that has one; see `AsdModel`.
        provenance: Where the references come from, for readers; JSON values.
        threshold: "percentile", linear between order statistics, or "gamma", by the gamma
            distribution that fits best (for positive scores).
        threshold_quantile: Share of normal clips that should stay below the threshold.

    Attributes:
        profiles: What each machine's bands normally hold, for its anomaly maps; `keep_profiles`
            makes them, and a machine may have none.
    """

    def __init__(
        self,
        config: DetectorChoice,
        *,
        fingerprint: Tensor | None = None,
        extractor: Any = None,  # noqa: ANN401  an AsdFeatureExtractor, or what is called like it
        guard: Mapping[str, float] | None = None,
        provenance: Mapping[str, Any] | None = None,
        threshold: ThresholdName = "percentile",
        threshold_quantile: float = THRESHOLD_QUANTILE,
    ) -> None:
        check_choice("detector", config.detector, BANK_DETECTORS)
        wrong = {
            name: strength for name, strength in (guard or {}).items() if not 0 <= strength <= 1
        }
        if wrong:
            raise ValueError(f"The guard's strengths must lie in [0, 1], got {wrong}.")
        check_rule(threshold, threshold_quantile)
        self.detector = config.detector
        self.detector_options = config.detector_options or {}
        self.fingerprint = fingerprint
        self.extractor_settings = {} if extractor is None else _settings(extractor)
        self.guard = dict(guard or {})
        self.provenance = dict(provenance or {})
        self.threshold_name: ThresholdName = threshold
        self.threshold_quantile = threshold_quantile
        self.profiles: dict[str, Tensor] = {}
        self._machines: dict[str, _Machine] = {}
        self._warned_of: set[str] = set()  # machines without threshold, said once each

    @property
    def machines(self) -> list[str]:
        """Full names of the machines in the bank, sorted."""
        return sorted(self._machines)

    def fit(
        self,
        table: Table,
        *,
        calibration: Table | None = None,
        folds: Sequence[tuple[Table, Table]] = (),
        frozen_encoder: bool = False,
    ) -> Self:
        """Learn every machine of a table, forgetting what the bank held.

        Args:
            table: The references, normal clips, two or more per machine.
            calibration: Normal clips of neither training nor bank, of machines of the table.
            folds: For cross-fitting, instead of `calibration`: pairs of references and held-out
                clips, embedded by an encoder that was trained without the latter (any one encoder
                if it is frozen). Each fold's held-out clips are scored by its references alone,
                and the scores of all folds are pooled.
            frozen_encoder: Whether the encoder never saw the references; then machines without
                calibration clips are calibrated by leave-one-out over the bank. For an encoder
                that was tuned on them this would be too optimistic.

        Raises:
            ValueError: No clips, an anomaly, a clip in both tables or in two folds, a machine with
                fewer than two references, or one with calibration clips only.
        """
        if calibration is not None and folds:
            raise ValueError("fit got calibration clips and folds. Give one of the two.")
        references = _by_machine(table)
        held_out = {} if calibration is None else _by_machine(calibration)
        if not references:
            raise ValueError("fit got no clips. Give ReferenceBank normal clips of a machine.")
        cross_fitted = self._cross_fit(folds)
        if stray := sorted((set(held_out) | set(cross_fitted)) - set(references)):
            raise ValueError(
                f"There are calibration clips but no references of {stray}. Give references of "
                "these machines too, or leave their calibration clips out."
            )
        self._machines = {
            name: self._learn(name, clips, held_out.get(name), frozen_encoder=frozen_encoder)
            if name not in cross_fitted
            else self._learn(name, clips, None, calibrated=cross_fitted[name])
            for name, clips in references.items()
        }
        self.profiles = {}
        return self

    def enroll(
        self,
        name: str,
        table: Table,
        *,
        calibration: Table | None = None,
        folds: Sequence[tuple[Table, Table]] = (),
        frozen_encoder: bool = False,
    ) -> Self:
        """Add one machine of your own, or replace it, as "local/<name>/00".

        Args:
            name: Of the machine, without a slash.
            table: Its references, two or more; their `machines` column is not read.
            calibration: More of its normal clips, which are not references.
            folds: As for `fit`; their `machines` column holds `local_machine(name)`.
            frozen_encoder: As for `fit`. True for a downloaded checkpoint, which never saw them.

        Raises:
            ValueError: As for `fit`, or the name cannot be one.
        """
        machine = local_machine(name)
        self._machines[machine] = self._learn(
            machine,
            _clips_of(table),
            None if calibration is None else _clips_of(calibration),
            frozen_encoder=frozen_encoder,
            calibrated=self._cross_fit(folds).get(machine),
        )
        self.profiles.pop(machine, None)
        return self

    def keep_profiles(self, table: Table) -> Self:
        """Take as each machine's profile the mean over its clips of a table.

        A profile changes no score. With it, an anomaly map compares each band with what that band
        normally is, so that a steady fault shows too; see anomaly_map.py.

        Args:
            table: Normal clips, with what `BandMeans` returns in the place of embeddings. Some
                dozens of a machine's references do.

        Raises:
            UnknownMachineError: The bank holds no such machine.
            ValueError: A clip is an anomaly.
        """
        for name, clips in _by_machine(table).items():
            if name not in self._machines:
                raise UnknownMachineError(f"{name!r} has no references, so it needs no profile.")
            _check_normal(clips, f"profile clips of {name}")
            self.profiles[name] = clips.embedding.double().mean(dim=0).float()
        return self

    def resolve(self, machine: str | None) -> str:
        """Return the full name of a machine of the bank.

        Raises:
            UnknownMachineError: No machine, or more than one, is meant.
        """
        held = ", ".join(repr(name) for name in self.machines) or "none"
        if machine is None:
            if len(self._machines) == 1:
                return self.machines[0]
            raise UnknownMachineError(f"Which machine is it? The reference bank holds: {held}.")
        if machine in self._machines:
            return machine
        matches = [name for name in self.machines if name.split("/")[1:2] == [machine]]
        if len(matches) == 1:
            return matches[0]
        if matches:
            raise UnknownMachineError(
                f"{machine!r} means more than one machine of the reference bank. Choose from: "
                f"{', '.join(repr(name) for name in matches)}."
            )
        raise UnknownMachineError(
            f"The reference bank has no machine {machine!r}. It holds: {held}. "
            f"Give ReferenceBank.enroll normal clips of {machine!r} first."
        )

    def fitted_detector(self, machine: str | None = None) -> Detector:
        """Return what scores a machine's clips."""
        return self._machines[self.resolve(machine)].detector

    def anomaly_score(self, embedding: Tensor, machine: str | None = None) -> Tensor:
        """Return (M,) float32 for embeddings (M, views, bands, size); higher is more anomalous."""
        return self._machines[self.resolve(machine)].detector.anomaly_score(embedding)

    def decide(self, anomaly_score: float, machine: str | None = None) -> Decision:
        """Return the verdict on one score of `anomaly_score`, with its threshold and p-value."""
        name = self.resolve(machine)
        try:
            decision = self._machines[name].calibration.decide(anomaly_score)
        except ValueError as error:
            raise ValueError(f"{name}: {error}") from error
        if decision.threshold is None and name not in self._warned_of:
            self._warned_of.add(name)
            logger.warning(
                "%s has no threshold, so there is no verdict: fit or enroll it with "
                "calibration clips, which neither trained the encoder nor sit in the bank.",
                name,
            )
        return decision

    def domain_p_values(
        self, anomaly_score: float, machine: str | None = None
    ) -> dict[str, DomainPValue]:
        """Return the p-value of one score within each domain, with the smallest it could be.

        For readers: a verdict takes the p-value among all calibration clips.
        """
        return self.calibration(machine).domain_p_values(anomaly_score)

    def calibration(self, machine: str | None = None) -> Calibration:
        """Return a machine's calibration clips, their scores and its threshold."""
        return self._machines[self.resolve(machine)].calibration

    def calibration_scores(self, machine: str | None = None) -> Tensor:
        """Return a machine's calibration scores, (N,) float32 in ascending order; N may be 0."""
        return self.calibration(machine).anomaly_scores

    def threshold(self, machine: str | None = None) -> float | None:
        """Return the score above which a machine's clip is anomalous; None without calibration."""
        return self.calibration(machine).threshold

    def rule(self, machine: str | None = None) -> dict[str, Any] | None:
        """Return how a machine's threshold was found, as in reference_bank.json; None without one.

        "scores" is "held_out", "cross_fitted" or "leave_one_out".
        """
        return self.calibration(machine).rule

    def front_end_strength(self, machine: str | None = None) -> float:
        """Return how strongly the front end may clean this machine's clips, in [0, 1]."""
        return self.guard.get(self.resolve(machine), 1.0)

    def nearest_references(
        self, embedding: Tensor, machine: str | None = None, *, k: int = 3
    ) -> list[list[dict[str, Any]]]:
        """Return for each clip its k nearest references: file_name, domain and distance."""
        held = self._machines[self.resolve(machine)]
        indices, distances = held.detector.nearest(embedding, k)
        return [
            [
                {"file_name": held.file_names[i], "domain": held.domains[i], "distance": distance}
                for i, distance in zip(row, away, strict=True)
            ]
            for row, away in zip(indices.tolist(), distances.tolist(), strict=True)
        ]

    def check_encoder(self, model: nn.Module, extractor: Any = None) -> None:  # noqa: ANN401  as in __init__
        """Raise ValueError unless `model` makes the embeddings that this bank was fitted on.

        The relative error of the fingerprint may be 0.01 at full and 0.05 at half precision. The
        extractor's settings must be those that the bank keeps; banks of the first versions and of
        callers without an extractor keep none.
        """
        given = {} if extractor is None else _settings(extractor)
        for name, due in self.extractor_settings.items():
            if name in given and given[name] != due:
                raise ValueError(
                    f"This reference bank heard its clips with {name}={due!r}, but the feature "
                    f"extractor has {name}={given[name]!r}. Load extractor and bank from the same "
                    "folder and revision, or fit a bank with this extractor."
                )
        if self.fingerprint is None:
            raise ValueError(
                "This reference bank has no fingerprint, so nothing says which model it belongs "
                "to. Build it as ReferenceBank(config, fingerprint=encoder_fingerprint(model))."
            )
        half = any(parameter.element_size() < 4 for parameter in model.parameters())
        tolerance = HALF_PRECISION_TOLERANCE if half else FULL_PRECISION_TOLERANCE
        self._check_fingerprint(encoder_fingerprint(model), tolerance)

    def _check_fingerprint(self, found: Tensor, tolerance: float) -> None:
        """Raise ValueError unless another fingerprint is this bank's."""
        if self.fingerprint is None:
            raise ValueError("This reference bank has no fingerprint.")
        if found.shape == self.fingerprint.shape:
            error = float((found - self.fingerprint).norm() / self.fingerprint.norm())
            if error <= tolerance:
                return
            problem = f"their fingerprints differ by {error:.3g}, more than {tolerance}"
        else:
            problem = f"it gives {tuple(found.shape)} where {tuple(self.fingerprint.shape)} is due"
        raise ValueError(
            f"This reference bank belongs to another encoder: {problem}. Load model and bank from "
            "the same folder and revision, or fit a bank with this model."
        )

    def leave_one_out(self, machine: str | None = None) -> Tensor:
        """Return each reference's score by the others, (N,) float32.

        Raises:
            ValueError: The detector kept a coreset of the references.
        """
        return self._machines[self.resolve(machine)].detector.leave_one_out()

    def push_to_hub(
        self,
        repo_id: str,
        *,
        private: bool | None = None,
        revision: str | None = None,
        token: str | bool | None = None,
        commit_message: str = "Upload the reference bank",
    ) -> str:
        """Put this bank into a repository in one commit, and return that commit's address.

        Args:
            repo_id: "owner/name"; made if it is not there.
            private: Of a new repository, whether others may not see it.
            revision: The branch; None is main.
            token: With write access.
            commit_message: Of the commit.

        Raises:
            ValueError: The repository has a bank of another encoder.
        """
        try:
            there = type(self).from_pretrained(repo_id, revision=revision, token=token)
        except OSError:  # no repository, no such branch, or no bank in it
            there = None
        if there is not None and there.fingerprint is not None:
            self._check_fingerprint(there.fingerprint, HALF_PRECISION_TOLERANCE)
        return push_files(
            self,
            repo_id,
            private=private,
            revision=revision,
            token=token,
            commit_message=commit_message,
        )

    def save_pretrained(self, save_directory: str | Path) -> None:
        """Write reference_bank.safetensors and reference_bank.json, each whole or not at all."""
        folder = Path(save_directory)
        folder.mkdir(parents=True, exist_ok=True)
        tensors = {} if self.fingerprint is None else {"fingerprint": self.fingerprint}
        for name, held in self._machines.items():
            scores = held.calibration.anomaly_scores
            state = held.detector.state_dict() | {"calibration_scores": scores}
            if name in self.profiles:
                state["profile"] = self.profiles[name]
            tensors |= {f"{name}.{key}": tensor.contiguous() for key, tensor in state.items()}
        described: dict[str, Any] = {
            "format_version": FORMAT_VERSION,
            "detector": self.detector,
            "detector_options": self._all_options(),
            "fingerprint": None if self.fingerprint is None else list(self.fingerprint.shape),
            "extractor_settings": self.extractor_settings,
            "guard": self.guard,
            "threshold_rule": {"name": self.threshold_name, "quantile": self.threshold_quantile},
            "machines": {
                name: {
                    "threshold": held.calibration.threshold,
                    "rule": held.calibration.rule,
                    "file_names": held.file_names,
                    "domains": held.domains,
                    "calibration_file_names": held.calibration.file_names,
                    "calibration_domains": held.calibration.domains,
                }
                for name, held in sorted(self._machines.items())
            },
            "provenance": self.provenance,
        }
        temporary = {name: folder / f".{name}.{os.getpid()}" for name in (TENSORS_NAME, JSON_NAME)}
        try:
            save_file(tensors, temporary[TENSORS_NAME], metadata={"format": "pt"})
            described["tensors_sha256"] = _sha256(temporary[TENSORS_NAME])
            text = json.dumps(described, indent=2, ensure_ascii=False, allow_nan=False)
            temporary[JSON_NAME].write_text(text + "\n", encoding="utf-8")
            # safetensors lets only the owner read what it writes, whatever the umask says.
            temporary[TENSORS_NAME].chmod(temporary[JSON_NAME].stat().st_mode)
            for name, path in temporary.items():
                path.replace(folder / name)
        finally:
            for path in temporary.values():
                path.unlink(missing_ok=True)

    @classmethod
    def from_pretrained(
        cls,
        name_or_dir: str | Path,
        *,
        revision: str | None = None,
        token: str | bool | None = None,
        local_files_only: bool = False,
    ) -> Self:
        """Read a bank from a folder or from a repository of the Hub.

        Raises:
            FileNotFoundError: There is no bank.
            ConnectionError: It is not in the cache, and the Hub cannot be asked.
            ValueError: A newer nearfar wrote it, or its two files do not belong together.
        """
        origin = {"revision": revision, "token": token, "local_files_only": local_files_only}
        try:
            described = json.loads(fetch(name_or_dir, JSON_NAME, **origin).read_bytes())
        except json.JSONDecodeError as error:
            raise ValueError(f"{JSON_NAME} of {name_or_dir} is damaged: {error}.") from error
        if described["format_version"] > FORMAT_VERSION:
            raise ValueError(
                f"{name_or_dir} has a reference bank of format version "
                f"{described['format_version']}, but this code reads versions up to "
                f"{FORMAT_VERSION}. Update nearfar."
            )
        path = fetch(name_or_dir, TENSORS_NAME, **origin)
        if _sha256(path) != described["tensors_sha256"]:
            raise ValueError(
                f"{TENSORS_NAME} of {name_or_dir} is damaged, or is not the file that {JSON_NAME} "
                "was written with. Fetch or save both again."
            )
        tensors = load_file(path)
        # Banks of the first versions do not name their rule, nor their calibration clips.
        rule = described.get("threshold_rule", {"name": "percentile", "quantile": 0.9})
        bank = cls(
            _StoredDetectorChoice(described["detector"], described["detector_options"]),
            fingerprint=tensors.pop("fingerprint", None),
            guard=described["guard"],
            provenance=described["provenance"],
            threshold=rule["name"],
            threshold_quantile=rule["quantile"],
        )
        bank.extractor_settings = described.get("extractor_settings", {})
        for name, held in described["machines"].items():
            prefix = f"{name}."
            state = {k.removeprefix(prefix): t for k, t in tensors.items() if k.startswith(prefix)}
            scores = state.pop("calibration_scores")
            if "profile" in state:  # older banks have none
                bank.profiles[name] = state.pop("profile")
            unknown = [None] * len(scores)
            bank._machines[name] = _Machine(
                bank._new_detector().load_state_dict(state),
                held["file_names"],
                held["domains"],
                Calibration(
                    scores,
                    held.get("calibration_file_names", unknown),
                    held.get("calibration_domains", unknown),
                    held["threshold"],
                    held["rule"],
                ),
            )
        return bank

    def _new_detector(self) -> Detector:
        return BANK_DETECTORS[self.detector](**self.detector_options)

    def _all_options(self) -> dict[str, Any]:
        """Return the detector's options with its defaults, which a later version may change."""
        parameters = inspect.signature(BANK_DETECTORS[self.detector]).parameters
        return {name: p.default for name, p in parameters.items()} | self.detector_options

    def _learn(
        self,
        machine: str,
        clips: _Clips,
        calibration: _Clips | None,
        *,
        frozen_encoder: bool = False,
        calibrated: Calibration | None = None,
    ) -> _Machine:
        """Fit one machine on normal clips, and calibrate it on others."""
        detector = self._fit_detector(machine, clips)
        if calibrated is None and calibration is not None:
            scores = self._held_out_scores(machine, detector, clips, calibration)
            calibrated = self._calibrate(machine, scores, calibration, "held_out")
        elif calibrated is None and frozen_encoder:
            calibrated = self._calibrate(machine, detector.leave_one_out(), clips, "leave_one_out")
        nothing = Calibration(torch.empty(0), [], [], None, None)
        return _Machine(detector, clips.file_names, clips.domains, calibrated or nothing)

    def _fit_detector(self, machine: str, clips: _Clips) -> Detector:
        _check_normal(clips, f"references of {machine}")
        if len(clips.file_names) < 2:
            raise ValueError(
                f"{machine} has {len(clips.file_names)} reference clips, but a bank needs two or "
                "more. Record more normal clips of it, or leave the machine out."
            )
        return self._new_detector().fit(clips.embedding, domains=clips.domains)

    def _held_out_scores(
        self, machine: str, detector: Detector, clips: _Clips, calibration: _Clips
    ) -> Tensor:
        """Return the scores of clips that must not be among the detector's references."""
        _check_normal(calibration, f"calibration clips of {machine}")
        if shared := sorted(set(calibration.file_names) & set(clips.file_names)):
            raise ValueError(
                f"{len(shared)} calibration clips of {machine} are references too, the first "
                f"is {shared[0]}. A clip that sits in the bank is no test of the threshold: "
                "hold other clips out."
            )
        return detector.anomaly_score(calibration.embedding)

    def _cross_fit(self, folds: Sequence[tuple[Table, Table]]) -> dict[str, Calibration]:
        """Return each machine's calibration by the pooled scores of the folds' held-out clips."""
        pooled: dict[str, list[tuple[Tensor, _Clips]]] = {}
        for table, held_out in folds:
            references = _by_machine(table)
            for name, clips in _by_machine(held_out).items():
                if name not in references:
                    raise ValueError(f"A fold holds out clips of {name} but has no references.")
                detector = self._fit_detector(name, references[name])
                scores = self._held_out_scores(name, detector, references[name], clips)
                pooled.setdefault(name, []).append((scores, clips))
        calibrations = {}
        for name, parts in pooled.items():
            scores = torch.cat([scores for scores, _ in parts])
            clips = _joined([clips for _, clips in parts])
            names = clips.file_names
            if len(set(names)) < len(names):
                twice = next(file_name for file_name in names if names.count(file_name) > 1)
                raise ValueError(
                    f"{name}: {twice} is held out in two folds. Each clip belongs to one."
                )
            calibrations[name] = self._calibrate(name, scores, clips, "cross_fitted")
        return calibrations

    def _calibrate(self, machine: str, scores: Tensor, clips: _Clips, origin: str) -> Calibration:
        try:
            return Calibration.fit(
                scores,
                clips.file_names,
                clips.domains,
                origin=origin,
                name=self.threshold_name,
                quantile=self.threshold_quantile,
            )
        except ValueError as error:
            raise ValueError(f"{machine}: {error}") from error


def _settings(extractor: Any) -> dict[str, Any]:  # noqa: ANN401  as in ReferenceBank
    """Return the settings of a feature extractor that change how a clip is heard."""
    return {
        name: getattr(extractor, name) for name in EXTRACTOR_SETTINGS if hasattr(extractor, name)
    }


def local_machine(name: str) -> str:
    """Return the full name of a machine that a user enrolls, or raise ValueError."""
    if not name or "/" in name:
        raise ValueError(f"{name!r} cannot name a machine. Give a name without a slash.")
    return f"{LOCAL}/{name}/00"


def _clips_of(table: Table, rows: NDArray[np.bool_] | slice = slice(None)) -> _Clips:
    """Return some rows of a table, all by default."""
    return _Clips(
        torch.from_numpy(np.asarray(table.embedding)[rows]),
        [str(name) for name in np.asarray(table.file_names, dtype=object)[rows]],
        np.asarray(table.domains, dtype=object)[rows].tolist(),
        np.asarray(table.conditions, dtype=object)[rows].tolist(),
    )


def _joined(parts: Sequence[_Clips]) -> _Clips:
    """Return the clips of several tables in one."""
    return _Clips(
        torch.cat([part.embedding for part in parts]),
        [name for part in parts for name in part.file_names],
        [domain for part in parts for domain in part.domains],
        [condition for part in parts for condition in part.conditions],
    )


def _by_machine(table: Table) -> dict[str, _Clips]:
    """Return the clips of each machine of a table."""
    machines = np.asarray(table.machines, dtype=object)
    return {name: _clips_of(table, machines == name) for name in sorted(set(machines.tolist()))}


def _check_normal(clips: _Clips, what: str) -> None:
    """Raise ValueError if a clip is marked as an anomaly."""
    named = zip(clips.file_names, clips.conditions, strict=True)
    if wrong := [name for name, condition in named if condition == "anomaly"]:
        raise ValueError(
            f"{len(wrong)} {what} are anomalies, the first is {wrong[0]}. Give normal clips only: "
            "nothing is learned from anomalies."
        )


def _sha256(path: Path) -> str:
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


__all__ = ["ReferenceBank", "UnknownMachineError", "local_machine"]

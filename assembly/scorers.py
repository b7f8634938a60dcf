"""Run folders of every kind, loaded: scorers of clips."""

from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
import yaml
from accelerate import Accelerator
from datasets import Dataset

from data_scripts.near_far import decoded, known, load_near_far
from modeling import AsdFeatureExtractor, AsdModel, AutoencoderModel, Calibration, ReferenceBank
from nearfar.clip_streams import ClipStream
from nearfar.embeddings import EmbeddingTable, extract_embeddings
from nearfar.evaluation import METRICS_FILE
from nearfar.feature_fusion import joined_fingerprint, joined_table
from nearfar.files import read_json
from nearfar.fused_scores import CalibrationClips, verdicts
from nearfar.fusion_run import read_fusion
from nearfar.hub import read_run
from nearfar.score_folder import Scored
from nearfar.score_plots import ScoredClips
from nearfar.score_table import ScoreTable
from nearfar.scorers import FusionScorer, Scorer

MODELS: dict[str, Any] = {
    "model": AsdModel,
    "autoencoder": AutoencoderModel,
}  # by the kind in run.json
PROVENANCE = ("seed", "recipe", "frozen_encoder", "smoke")  # what scores keep of a run's metrics


class BankScorer:
    """What one bank knows of its machines."""

    bank: ReferenceBank

    @property
    def machines(self) -> list[str]:
        """Those of the bank."""
        return self.bank.machines

    def check_machines(self, machines: Iterable[str]) -> None:
        """Raise KeyError naming the first machine that the bank does not hold."""
        for machine in sorted(set(machines)):
            self.bank.resolve(machine)

    def calibration(self, machine: str) -> Calibration:
        """Return a machine's calibration clips, their scores and its threshold."""
        return self.bank.calibration(machine)


@dataclass
class ModelScorer(BankScorer):
    """A run of kind "model" or "autoencoder".

    Attributes:
        model: Gives embeddings, or scores in their place.
        feature_extractor: Batches waveforms for the model.
        bank: Gives scores, thresholds and p-values from embeddings.
        recipe: All arguments that made the run.
        metrics: The run's own `metrics.json`.
    """

    model: AsdModel | AutoencoderModel
    feature_extractor: AsdFeatureExtractor
    bank: ReferenceBank
    recipe: dict[str, Any]
    metrics: dict[str, Any]

    def embed(
        self,
        clips: Sequence[dict[str, Any]] | ClipStream,
        accelerator: Accelerator | None = None,
        **options: Any,  # noqa: ANN401
    ) -> EmbeddingTable:
        """Embed decoded clips; `options` go to `extract_embeddings`."""
        strengths = {name: self.bank.front_end_strength(name) for name in self.bank.machines}
        return extract_embeddings(
            self.model,
            clips,
            self.feature_extractor,
            accelerator=accelerator,
            front_end_strength=strengths,
            **options,
        )

    def score(
        self,
        clips: Sequence[dict[str, Any]],
        accelerator: Accelerator | None = None,
        **options: Any,  # noqa: ANN401
    ) -> ScoreTable:
        """Score decoded clips; `options` go to `extract_embeddings`."""
        return bank_scores(
            self.bank, self.embed(clips, accelerator, description="scoring", **options)
        )


@dataclass
class FeatureFusionScorer(BankScorer):
    """A run of kind "feature_fusion": the members' embeddings of a clip, in one.

    Attributes:
        members: Give embeddings; their own banks are not used.
        bank: Gives scores, thresholds and p-values from joined embeddings.
        metrics: The run's own `metrics.json`.
    """

    members: Sequence[ModelScorer]
    bank: ReferenceBank
    metrics: dict[str, Any]

    @property
    def recipe(self) -> dict[str, Any]:
        """The first member's."""
        return self.members[0].recipe

    def score(
        self,
        clips: Sequence[dict[str, Any]],
        accelerator: Accelerator | None = None,
        **options: Any,  # noqa: ANN401
    ) -> ScoreTable:
        """Score decoded clips; `options` go to `extract_embeddings`."""
        options = {"description": "scoring"} | options
        tables = [member.embed(clips, accelerator, **options) for member in self.members]
        return bank_scores(self.bank, joined_table(tables))


def bank_scores(bank: ReferenceBank, table: EmbeddingTable) -> ScoreTable:
    """Return what a bank says of embeddings."""
    scores = np.empty(len(table))
    for machine in table.machine_names:
        rows = np.flatnonzero(table.machines == machine)
        embedding = torch.from_numpy(table.embedding[rows])
        scores[rows] = bank.anomaly_score(embedding, machine).double().numpy()
    calibrations = {name: bank.calibration(name) for name in table.machine_names}
    verdict = verdicts(table.machines, scores, calibrations)
    return ScoreTable.of_clips(table, scores, *verdict)


def load_test_clips(
    data_dir: Path | None,
    accelerator: Accelerator,
    *,
    subsets: Sequence[str] = ("dev",),
    **options: Any,  # noqa: ANN401 - of load_near_far
) -> Dataset:
    """Return test clips; the main process prepares the cache, the others wait for it.

    Raises:
        ValueError: There are none.
    """
    assert data_dir is not None  # scripts check it
    with accelerator.main_process_first():
        splits = load_near_far(data_dir, subsets=list(subsets), **options)
    if "test" not in splits:
        raise ValueError(f"{data_dir} has no test clips in its subsets {list(subsets)}.")
    return splits["test"]


def scored_by(
    scorer: Scorer,
    clips: Dataset,
    accelerator: Accelerator,
    **options: Any,  # noqa: ANN401 - of extract_embeddings
) -> tuple[Scored, ScoredClips | None]:
    """Return the scores of test clips, with all that a score folder keeps beside them.

    And, for a model's, what they were made of and by.
    """
    scorer.check_machines(row["machine"] for row in known(clips))
    rows, explained = decoded(clips), None
    if isinstance(scorer, ModelScorer):
        embeddings = scorer.embed(rows, accelerator, description="scoring", **options)
        table = bank_scores(scorer.bank, embeddings)
        parts = scorer.model, scorer.feature_extractor, scorer.bank
        explained = ScoredClips(*parts, rows, embeddings)
    else:
        table = scorer.score(rows, accelerator, **options)
    scored = Scored(
        table,
        {name: scorer.calibration(name) for name in table.machine_names},
        {name: scorer.metrics.get(name) for name in PROVENANCE},
    )
    return scored, explained


def calibrate(clips: CalibrationClips) -> Calibration:
    """Return the percentile threshold of fused calibration scores."""
    scores = torch.from_numpy(clips.anomaly_scores)
    return Calibration.fit(scores, clips.file_names, clips.domains, origin=clips.origin)


def load_scorer(folder: Path) -> Scorer:
    """Load a run folder with the local classes, never with the folder's own code.

    Raises:
        FileNotFoundError: It, or a member of it, is not a complete run folder.
        ValueError: It is of a kind that this version cannot score, its bank belongs to another
            encoder, or its weights do not fit its members.
    """
    run = read_run(folder)
    if run["kind"] in ("fusion", "feature_fusion"):
        members = [load_scorer(folder / member) for member in run["members"]]
        metrics = folder / METRICS_FILE
        own = read_json(metrics) if metrics.is_file() else {}  # score.py --fuse makes none
        if run["kind"] == "feature_fusion":
            return feature_fusion(folder, members, own)
        fusion, _ = read_fusion(folder)
        if len(members) != len(fusion.weights):
            raise ValueError(
                f"{folder} has {len(members)} members but {len(fusion.weights)} weights. Make the "
                "fusion anew with score.py --fuse."
            )
        return FusionScorer(members, fusion, calibrate, own)
    if run["kind"] not in MODELS:
        raise ValueError(
            f"{folder} is a {run['kind']!r}; this version of score.py scores runs of the kinds "
            f"{[*MODELS, 'fusion', 'feature_fusion']}."
        )
    model = MODELS[run["kind"]].from_pretrained(folder).eval()
    bank = ReferenceBank.from_pretrained(folder)
    feature_extractor = AsdFeatureExtractor.from_pretrained(folder)
    bank.check_encoder(model, feature_extractor)
    return ModelScorer(
        model=model,
        feature_extractor=feature_extractor,
        bank=bank,
        recipe=yaml.safe_load((folder / "recipe.yaml").read_text(encoding="utf-8")),
        metrics=read_json(folder / METRICS_FILE),
    )


def feature_fusion(
    folder: Path, members: Sequence[Scorer], metrics: dict[str, Any]
) -> FeatureFusionScorer:
    """Return the scorer of a feature fusion whose members are loaded.

    Raises:
        ValueError: A member has no embeddings, or the bank belongs to other members.
    """
    models = [member for member in members if isinstance(member, ModelScorer)]
    if len(models) < len(members):
        raise ValueError(f"{folder} joins embeddings, but not every member of it has some.")
    bank = ReferenceBank.from_pretrained(folder)
    found = joined_fingerprint([model.bank.fingerprint for model in models])
    due = bank.fingerprint
    if due is None or due.shape != found.shape or not torch.allclose(due, found, atol=1e-3):
        raise ValueError(
            f"The reference bank of {folder} was fitted on the embeddings of other members. Make "
            "the fusion anew with train.py."
        )
    return FeatureFusionScorer(models, bank, metrics)

"""Pictures that a score folder has on request: drift, embeddings, maps of what stood out."""

from collections.abc import Sequence
from pathlib import Path
from typing import Any, Literal, NamedTuple, get_args

import numpy as np
import torch

from nearfar.embeddings import EmbeddingTable, evaluation_mode, model_inputs
from nearfar.plots import plot_anomaly_map, plot_drift, plot_embeddings
from nearfar.score_table import ScoreTable

PlotName = Literal["drift", "embeddings", "maps"]
PLOTS: tuple[PlotName, ...] = get_args(PlotName)
FROM_CLIPS = {"embeddings", "maps"}  # which a table of scores is not enough for


class ScoredClips(NamedTuple):
    """What scores were made of and by.

    Attributes:
        model: An `AsdModel` or an `AutoencoderModel`.
        feature_extractor: Its `AsdFeatureExtractor`.
        bank: Its `ReferenceBank`.
        clips: Decoded rows, by position.
        embeddings: Of the clips, in their order.
    """

    model: Any
    feature_extractor: Any
    bank: Any
    clips: Any
    embeddings: EmbeddingTable


def draw_plots(
    folder: Path,
    names: Sequence[str],
    table: ScoreTable,
    *,
    thresholds: dict[str, float | None],
    scored: ScoredClips | None = None,
) -> None:
    """Draw each machine's pictures below `folder`.

    Args:
        folder: Of the PNGs.
        names: Any of `PLOTS`: "drift", a machine's scores in the order of their file names;
            "embeddings", its clips and references in a plane; "maps", why its clip with the
            highest score has that score.
        table: Scores, of the clips in their order.
        thresholds: Per machine, None without.
        scored: For `FROM_CLIPS`.
    """
    for machine in table.machine_names:
        rows = np.flatnonzero(table.machines == machine)
        rows = rows[np.argsort(table.file_names[rows], kind="stable")]
        path, known = folder / machine.replace("/", "_"), table.take(rows)
        if "drift" in names:
            plot_drift(
                path.with_name(f"{path.name}_drift.png"),
                machine,
                known.anomaly_scores,
                known.conditions,
                known.domains,
                threshold=thresholds[machine],
            )
        if scored is None:
            continue
        if "embeddings" in names:
            detector = scored.bank.fitted_detector(machine)
            embedding = torch.from_numpy(scored.embeddings.embedding[rows])
            plot_embeddings(
                path.with_name(f"{path.name}_embeddings.png"),
                machine,
                detector.comparable(embedding).numpy(),
                known.conditions,
                known.domains,
                references=detector.references_.numpy(),
            )
        if "maps" in names:
            row = int(rows[known.anomaly_scores.argmax()])
            draw_map(path.with_name(f"{path.name}_map.png"), scored, row)


def draw_map(path: Path, scored: ScoredClips, row: int) -> None:
    """Draw why one clip scores as it does.

    Args:
        path: PNG to write.
        scored: Its model, bank and clips.
        row: Which clip.
    """
    clip, model, bank = scored.clips[row], scored.model, scored.bank
    machine, rate = clip["machine"], scored.feature_extractor.sampling_rate
    inputs = model_inputs([clip], scored.feature_extractor)
    inputs["front_end_strength"] = torch.tensor([bank.front_end_strength(machine)])
    device = next(model.parameters()).device
    inputs = {name: value.to(device) for name, value in inputs.items()}
    with torch.inference_mode(), evaluation_mode(model):
        drawn = model.anomaly_map(
            inputs,
            bank.fitted_detector(machine),
            machine=machine,
            profile=bank.profiles.get(machine),
        )
        heard = model.heard_waveform(inputs)[0].cpu().numpy()
    embedding = torch.from_numpy(scored.embeddings.embedding[[row]])
    plot_anomaly_map(
        path,
        f"{machine}, the clip with the highest score: {clip['file_name']}",
        heard,
        drawn.as_dict(),
        sampling_rate=rate,
        nearest=bank.nearest_references(embedding, machine)[0],
    )

"""Which detector, with which normalisation? On factories that nothing was tuned on.

A small BEATs is pre-trained as in benchmarks.objectives. Then, for each factory seed, the encoder
as it is and the same one fine-tuned by LoRA embed every clip once in three channels, the former
with bands kept, the latter as it was trained to be scored: projected, all bands in one vector.
Every detector is fitted to the references and scores the test clips. Last, two fusions of detectors
are searched for weights, nested (each machine fused with weights chosen on the others) and
optimistic. What is done is not done again; a detector that is new is run on the embeddings that are
there. Whether thresholds keep their word is told by benchmarks.calibration.

python -m benchmarks.detectors --output_dir runs/detectors
"""

import logging
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import torch
from numpy.typing import NDArray
from safetensors.numpy import load_file, save_file

from benchmarks.compare import METRICS
from benchmarks.objectives import private_cache
from benchmarks.small_systems import (
    FINE_TUNED,
    FROZEN,
    SYSTEMS,
    make_systems,
    pretrained_encoder,
    remove_recordings,
    run_folder,
)
from data_scripts.near_far import decoded, known, load_near_far
from modeling import AsdConfig, AsdFeatureExtractor, AsdModel, ReferenceBank
from nearfar.arguments import check_names, parse_arguments, script
from nearfar.embeddings import EmbeddingTable, extract_embeddings
from nearfar.evaluation import ScoreTable, evaluate_scores
from nearfar.files import read_json, write_json
from nearfar.fused_scores import search_input
from nearfar.fusion import ScoreFusion
from nearfar.intervals import mean_interval
from nearfar.weight_search import search_weights

SIZES: dict[str, Any] = {"num_machines": 3, "source_train": 100, "target_train": 10}
SIZES |= {"test_per_group": 25, "seconds": 6.0, "preset": "challenge"}
CHANNELS = ["near", "far", "residual"]  # the views of every embedding, in this order
EMBEDDINGS_FILE, CLIPS_FILE, RESULT = "embeddings.safetensors", "clips.json", "detectors.json"
FUSION_STEP = 0.1
# What of a system's configuration is another one than in training: what its clips are heard as.
HEARD: dict[str, dict[str, Any]] = {
    FROZEN: {
        "channels": CHANNELS,
        "scored_embedding": "pooled",
        "scored_pooling": "mean",
        "scored_pooling_options": {"keep_bands": True},
    },
    FINE_TUNED: {"channels": CHANNELS},
}
BANDS = {FROZEN: ("joined", "kept"), FINE_TUNED: ("joined",)}  # what its embeddings allow


class Case(NamedTuple):
    """A detector with its options.

    Attributes:
        detector: A key of `DETECTORS`.
        options: Of its constructor.
        bands: Whether bands are compared apart ("kept") or make one vector ("joined").
        channels: Views that are scored.
    """

    detector: str
    options: dict[str, Any]
    bands: str = "joined"
    channels: Sequence[str] = ("near",)


POOL = {"per_domain": False}
PLAIN = "1-NN"
CASES: dict[str, Case] = {
    PLAIN: Case("knn", {}),
    "4-NN, pooled": Case("knn", {"num_neighbors": 4} | POOL),
    "4-NN, per domain": Case("knn", {"num_neighbors": 4}),
    "1-NN, Euclidean": Case("knn", {"metric": "euclidean"}),
    "1-NN / median by domain": Case("knn", {"standardization": "median"}),
    "1-NN, z-score by domain": Case("knn", {"standardization": "z_score"}),
    "1-NN / density": Case("knn", {"normalization": "local_density"} | POOL),
    "1-NN - density": Case("knn", {"normalization": "local_density_difference"} | POOL),
    "1-NN, log / density": Case("knn", {"normalization": "log_local_density"} | POOL),
    "1-NN / density by domain": Case(
        "knn",
        {
            "normalization": "local_density",
            "density_neighbors": 16,
            "target_density_neighbors": 9,
            "density_total": True,
        },
    ),
    "1-NN, VarMin": Case("knn", {"normalization": "varmin"} | POOL),
    "1-NN, log VarMin": Case("knn", {"normalization": "log_varmin"} | POOL),
    "1-NN, SMOTE": Case("knn", {"oversampling": "smote"}),
    "1-NN, MemMix": Case("knn", {"oversampling": "memmix"}),
    "1-NN, coreset of 32": Case("knn", {"coreset_size": 32}),
    "bands apart": Case("knn", POOL, "kept"),
    "bands apart / density": Case("knn", {"normalization": "local_density"} | POOL, "kept"),
    "bands apart, VarMin": Case("knn", {"normalization": "varmin"} | POOL, "kept"),
    "bands apart, log VarMin": Case("knn", {"normalization": "log_varmin"} | POOL, "kept"),
    "Mahalanobis, pooled": Case("mahalanobis", POOL),
    "Mahalanobis, selective": Case("mahalanobis", {"shrink_to": "largest"}),
    "k-means + targets": Case("kmeans", {}),
    "GMM": Case("gmm", {"normalize": True}),
    "LOF": Case("lof", {}),
    "far only": Case("knn", {}, channels=("far",)),
    "near and far": Case("knn", {}, channels=("near", "far")),
    "residual": Case("knn", {}, channels=("residual",)),
    "near and residual": Case("knn", {}, channels=("near", "residual")),
}
# Members (system, case), that weights are searched for.
FUSIONS: dict[str, list[tuple[str, str]]] = {
    "both encoders": [(FROZEN, PLAIN), (FINE_TUNED, PLAIN)],
    "both, two detectors": [(system, case) for system in SYSTEMS for case in (PLAIN, "GMM")],
}
FIGURES = ("even weights", "best member", "nested", "optimistic")


@dataclass(kw_only=True)
class DetectorArguments:
    """Arguments of benchmarks.detectors."""

    output_dir: Path = field(metadata={"help": "Holds what is simulated, trained and scored."})
    seeds: list[int] = field(
        default_factory=lambda: list(range(80, 85)),
        metadata={"help": "Factory seeds (preset challenge); the training seed is the same."},
    )
    encoder_checkpoint: Path | None = field(
        default=None, metadata={"help": "Folder of an encoder; None pre-trains a small one."}
    )
    detectors: list[str] = field(
        default_factory=lambda: list(CASES), metadata={"help": f"Of: {'; '.join(CASES)}."}
    )
    keep_data: bool = field(default=False, metadata={"help": "Keep recordings and run folders."})


def main() -> None:
    """Pre-train an encoder, work through the seeds, then print the tables."""
    logging.basicConfig(level=logging.WARNING)
    args = parse_arguments(DetectorArguments)
    check_names("detectors", args.detectors, CASES)
    encoder = pretrained_encoder(args.output_dir, args.encoder_checkpoint, keep_data=args.keep_data)
    cases = [PLAIN, *(name for name in args.detectors if name != PLAIN)]
    results = []
    for seed in args.seeds:
        place = args.output_dir.resolve() / f"seed_{seed:03d}"
        pending = [name for name in SYSTEMS if not (place / name / CLIPS_FILE).is_file()]
        if pending:
            embed_seed(pending, seed, place, encoder, keep_data=args.keep_data)
        results.append(measure_seed(cases, place))
    print(format_detectors(cases, results))
    print()
    print(format_fusions(results))


def embed_seed(
    pending: Sequence[str], seed: int, folder: Path, encoder: Path, *, keep_data: bool
) -> None:
    """Simulate a factory, make some systems of it, and keep their embeddings of all clips."""
    systems = {name: SYSTEMS[name] for name in pending}
    make_systems(systems, folder, seed=seed, encoder=encoder, sizes=SIZES)
    with private_cache(folder / "cache"):
        sets = load_near_far(folder / "data", subsets=["dev"])
        for name in pending:
            embed_system(run_folder(folder, name), HEARD[name], sets, folder / name)
    remove_recordings(folder, systems, keep_data=keep_data)


def embed_system(
    run: Path, heard: Mapping[str, Any], sets: Mapping[str, Any], folder: Path
) -> None:
    """Write a system's embeddings of training and test clips, and which clips they are."""
    described = AsdConfig.from_pretrained(run).to_dict() | dict(heard)
    model = AsdModel.from_pretrained(run, config=AsdConfig.from_dict(described)).eval()
    extractor, bank = AsdFeatureExtractor.from_pretrained(run), ReferenceBank.from_pretrained(run)
    held_out = {name: set(bank.calibration(name).file_names) for name in bank.machines}
    rows, embeddings = [], []
    for split, clips in sets.items():
        table = extract_embeddings(
            model, decoded(clips), extractor, batch_size=16, description=split
        )
        embeddings.append(table.embedding)
        for row in known(clips):
            part = "reference" if split == "train" else "test"
            if split == "train" and row["file_name"] in held_out[row["machine"]]:
                part = "calibration"
            rows.append(row | {"part": part})
    folder.mkdir(parents=True, exist_ok=True)
    save_file({"embedding": np.concatenate(embeddings)}, folder / EMBEDDINGS_FILE)
    write_json(folder / CLIPS_FILE, rows)  # last: it says that all is there


def cases_of(system: str, cases: Sequence[str]) -> list[str]:
    """Return the cases that a system's embeddings allow."""
    return [name for name in cases if CASES[name].bands in BANDS[system]]


def measure_seed(cases: Sequence[str], folder: Path) -> dict[str, Any]:
    """Return `systems` (system -> case -> metrics) and `fusions`, measured where not there yet."""
    path = folder / RESULT
    result: dict[str, Any] = read_json(path) if path.is_file() else {"systems": {}, "fusions": {}}
    pending = {
        system: [
            name
            for name in cases_of(system, cases)
            if name not in result["systems"].get(system, {})
        ]
        for system in SYSTEMS
    }
    if not any(pending.values()) and result["fusions"].keys() == FUSIONS.keys():
        return result
    embedded = {system: read_embeddings(folder / system) for system in SYSTEMS}
    for system, names in pending.items():
        for name in names:
            table, _ = score(CASES[name], *embedded[system])
            metrics = evaluate_scores(table, num_resamples=0)
            values = {key: metrics["means"][key] for key in METRICS}
            of_system = result["systems"].setdefault(system, {})
            of_system[name] = {"official_score": metrics["official_score"]} | values
    for name, members in FUSIONS.items():
        scored = [score(CASES[case], *embedded[system]) for system, case in members]
        result["fusions"][name] = fuse(scored)
    write_json(path, result)
    return result


def read_embeddings(folder: Path) -> tuple[EmbeddingTable, NDArray[np.object_]]:
    """Return all clips of a system, and the part that each has: reference, calibration or test."""
    rows = read_json(folder / CLIPS_FILE)
    parts = np.array([row["part"] for row in rows], dtype=object)
    embedding = load_file(folder / EMBEDDINGS_FILE)["embedding"]
    return EmbeddingTable.from_clips(embedding, rows), parts


def score(
    case: Case, table: EmbeddingTable, parts: NDArray[np.object_]
) -> tuple[ScoreTable, ReferenceBank]:
    """Return the scores of the test clips, and the bank that gave them."""
    views = [CHANNELS.index(channel) for channel in case.channels]
    embedding = table.embedding[:, views]
    if case.bands == "joined":
        embedding = embedding.reshape(*embedding.shape[:2], 1, -1)
    heard = EmbeddingTable(**(vars(table) | {"embedding": embedding}))
    config = AsdConfig(detector=case.detector, detector_options=case.options)
    bank = ReferenceBank(config).fit(
        heard.take(parts == "reference"), calibration=heard.take(parts == "calibration")
    )
    test = heard.take(parts == "test")
    scores = np.empty(len(test))
    for machine in test.machine_names:
        rows = test.machines == machine
        clips = torch.from_numpy(test.embedding[rows])
        scores[rows] = bank.anomaly_score(clips, machine).double().numpy()
    return ScoreTable.of_clips(test, scores), bank


def fuse(scored: Sequence[tuple[ScoreTable, ReferenceBank]]) -> dict[str, Any]:
    """Return the official score of a fusion: by even weights, its best member's, and by search."""
    tables = [table for table, _ in scored]
    calibration = {
        name: [bank.calibration_scores(name).numpy() for _, bank in scored]
        for name in tables[0].machine_names
    }
    fusion = ScoreFusion([1 / len(scored)] * len(scored)).fit(calibration)
    found = search_weights(search_input(fusion, tables), step=FUSION_STEP, num_resamples=1)
    even = {
        name: fusion.transform([t.select(name).anomaly_scores for t in tables], name)
        for name in tables[0].machine_names
    }
    scores = np.empty(len(tables[0]))
    for name, values in even.items():
        scores[tables[0].machines == name] = values
    alone = [evaluate_scores(table, num_resamples=0)["official_score"] for table in tables]
    evenly = evaluate_scores(ScoreTable.of_clips(tables[0], scores), num_resamples=0)
    figures = (evenly["official_score"], max(alone))
    figures += (found.nested.estimate, found.optimistic.estimate)
    return dict(zip(FIGURES, figures, strict=True)) | {"weights": list(found.weights)}


def format_detectors(cases: Sequence[str], results: Sequence[Mapping[str, Any]]) -> str:
    """Return a table for each system: official scores, and how far each case is from plain 1-NN."""
    lines = []
    for system in SYSTEMS:
        lines.append(
            f"{system + ', official score':<28}{'mean (std)':>15}{'src AUC':>9}{'tgt AUC':>9}"
            f"{'pAUC':>8}   minus {PLAIN} (paired 95 % interval), ahead on"
        )
        by_case = {
            name: np.array(
                [
                    [result["systems"][system][name][key] for key in ("official_score", *METRICS)]
                    for result in results
                ]
            )
            for name in cases_of(system, cases)
        }  # (seeds, 4) each
        for name, values in by_case.items():
            mean = 100 * values.mean(axis=0)
            official = f"{mean[0]:.2f}"
            if len(results) > 1:
                official += f" ({100 * values[:, 0].std(ddof=1):.2f})"
            line = f"{name:<28}{official:>15}{mean[1]:>9.2f}{mean[2]:>9.2f}{mean[3]:>8.2f}"
            if name != PLAIN:
                line += "   " + _difference(values[:, 0] - by_case[PLAIN][:, 0])
            lines.append(line)
        lines.append("")
    lines.append(
        f"{len(results)} factories; of {len(cases) - 1} intervals for each encoder, one in twenty "
        "lies beside 0 by chance"
    )
    return "\n".join(lines)


def format_fusions(results: Sequence[Mapping[str, Any]]) -> str:
    """Return a table of fusions: what the search promises, and what holds on unseen machines."""
    lines = [f"{'fusion, official score':<24}" + "".join(f"{name:>14}" for name in FIGURES)]
    for name in FUSIONS:
        values = np.array([[r["fusions"][name][key] for key in FIGURES] for r in results])
        mean = 100 * values.mean(axis=0)
        lines.append(f"{name:<24}" + "".join(f"{value:>14.2f}" for value in mean))
        for other in ("even weights", "optimistic"):
            difference = values[:, FIGURES.index("nested")] - values[:, FIGURES.index(other)]
            lines.append(f"  nested minus {other}: {_difference(difference)}")
    return "\n".join(lines)


def _difference(values: NDArray[np.float64]) -> str:
    """Return a mean over factories with its interval, in percent."""
    if len(values) < 2:
        return f"{100 * values.mean():+.2f}"
    mean, half = mean_interval(100 * values)
    return (
        f"{mean:+.2f} ({mean - half:+.2f} to {mean + half:+.2f}), {(values > 0).sum()} of "
        f"{len(values)}"
    )


if __name__ == "__main__":
    script(main)

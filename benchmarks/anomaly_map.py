"""Do anomaly maps find faults? Maps against what simulated faults sound like by themselves.

For each factory seed: simulate the training clips of three machines, take a small pre-trained
encoder as it is and fine-tune it by LoRA; then simulate each anomalous clip with its fault alone as
a stem beside it, and compare the machine's map with where that stem is. The tenth of a map's cells
where the fault stands out most over all else in near's recording is where it is. Two figures: how
often a cell of it has a larger value than another cell (AUC; 0.5 by chance), and which share of the
map's positive values lies in it (0.1 by chance). Both are given for all clips and for those above
the machine's threshold, for only these need explaining.

Beside the map stand the map without a profile, and what needs no model: the level of each cell of
the cleaned sound, in the encoder's own logarithmic spectrogram, minus the references' mean there.
A fault that changes the speed moves everything: its stem is the whole machine, at both speeds.

A seed that is done is not done again.

python -m benchmarks.anomaly_map --output_dir runs/anomaly_map
python -m benchmarks.anomaly_map --seeds 310 --output_dir runs/anomaly_map --figure map.png
"""

import logging
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from sklearn.metrics import roc_auc_score

from assembly.scorers import load_scorer
from benchmarks import small_systems
from benchmarks.small_systems import (
    FROZEN,
    make_systems,
    pretrained_encoder,
    remove_recordings,
    run_folder,
)
from data_scripts.factory import Clip, FactoryArguments, PlannedClip, machine_of, simulate_clip
from modeling import ReferenceBank
from modeling.anomaly_map import AnomalyMap, mean_spectrum, spectrograms
from modeling.map_axes import MapAxes, patch_bins
from nearfar.arguments import check_names, parse_arguments, script
from nearfar.files import read_json, write_json
from nearfar.intervals import mean_interval
from nearfar.plots import plot_anomaly_map

SAMPLING_RATE = 16_000
SIZES: dict[str, Any] = {"num_machines": 3, "source_train": 100, "target_train": 10}
SIZES |= {"test_per_group": 1, "seconds": 6.0}  # test clips need no file
REFERENCES = 30  # training clips whose mean the plain difference takes off
FAULT_SHARE = 0.1
SYSTEMS = small_systems.SYSTEMS | {  # mean pooling, whose map is additive, and one by occlusion
    f"{FROZEN}, GeM": [*small_systems.SYSTEMS[FROZEN], "--pooling", "gem"],
}
RESULT = "maps.json"
WAYS = ("map", "map without profile", "spectrogram difference")
FIGURES = ("auc", "mass")


@dataclass(kw_only=True)
class MapArguments:
    """Arguments of benchmarks.anomaly_map."""

    output_dir: Path = field(metadata={"help": "Holds one folder per seed."})
    seeds: list[int] = field(
        default_factory=lambda: list(range(310, 315)),
        metadata={"help": "Factory seeds; the training seed is the same."},
    )
    systems: list[str] = field(
        default_factory=lambda: list(SYSTEMS), metadata={"help": f"Any of {'; '.join(SYSTEMS)}."}
    )
    encoder_checkpoint: Path | None = field(
        default=None, metadata={"help": "Folder of an encoder; None pre-trains a small one."}
    )
    clips: int = field(default=12, metadata={"help": "Anomalous ones per machine and domain."})
    keep_data: bool = field(default=False, metadata={"help": "Keep recordings and runs."})
    figure: Path | None = field(
        default=None, metadata={"help": "Only draw the first system's highest clip; keeps its run."}
    )


def main() -> None:
    """Work through the seeds, then print the tables; or draw the figure."""
    logging.basicConfig(level=logging.WARNING)
    args = parse_arguments(MapArguments)
    check_names("systems", args.systems, SYSTEMS)
    encoder = pretrained_encoder(args.output_dir, args.encoder_checkpoint, keep_data=args.keep_data)
    if args.figure is not None:
        folder = args.output_dir.resolve() / f"seed_{args.seeds[0]:03d}"
        train_systems(args.systems[:1], args.seeds[0], folder, encoder)
        run = run_folder(folder, args.systems[0])
        draw_clip(args.figure, run, args.seeds[0], args.clips)
        return
    results = [evaluate_seed(seed, encoder, args) for seed in args.seeds]
    for name in args.systems:
        print("\n".join(format_system(name, [result[name] for result in results])), end="\n\n")


def evaluate_seed(seed: int, encoder: Path, args: MapArguments) -> dict[str, list[dict[str, Any]]]:
    """Return each system's clips on one factory; do what is not done."""
    folder = args.output_dir.resolve() / f"seed_{seed:03d}"
    runs = {name: run_folder(folder, name) for name in args.systems}
    paths = {name: run.with_name(f"{run.name}_{RESULT}") for name, run in runs.items()}
    pending = [name for name, path in paths.items() if not path.is_file()]
    if pending:
        train_systems(pending, seed, folder, encoder)
        for name in pending:
            print(f"factory {seed}: maps of {name}", flush=True)
            clips = list(evaluate(runs[name], seed, args.clips))
            write_json(paths[name], {"clips": args.clips, "rows": clips})
        remove_recordings(folder, pending, keep_data=args.keep_data)
    results = {name: read_json(path) for name, path in paths.items()}
    for name, result in results.items():
        if result["clips"] != args.clips:
            raise ValueError(
                f"{paths[name]} has {result['clips']} clips per machine and domain, asked for are "
                f"{args.clips}. Choose another output_dir, or the same number."
            )
    return {name: result["rows"] for name, result in results.items()}


def train_systems(names: Sequence[str], seed: int, folder: Path, encoder: Path) -> None:
    """Simulate training clips, and make the systems that are not there."""
    systems = {name: SYSTEMS[name] for name in names}
    make_systems(systems, folder, seed=seed, encoder=encoder, sizes=SIZES)


def simulated(seed: int, number: int, split: str, condition: str, count: int) -> Iterator[Clip]:
    """Yield so many clips of one machine and each domain, with their faults as stems."""
    arguments = FactoryArguments(seed=seed, **SIZES)
    for domain in ("source", "target"):
        for index in range(min(count, SIZES["target_train"]) if split == "train" else count):
            clip = PlannedClip(number, split, domain, condition, index)
            yield simulate_clip(arguments, clip, fault_stem=condition == "anomaly")


@torch.inference_mode()
def evaluate(run: Path, seed: int, count: int) -> Iterator[dict[str, Any]]:
    """Yield for each anomalous clip its fault, whether it was found, and how well it was mapped."""
    scorer: Any = load_scorer(run)
    model, bank = scorer.model, scorer.bank
    for number in range(SIZES["num_machines"]):
        machine = f"2026/{machine_of(seed, number).machine_type}/00"
        references = [
            spectrum_of(model, model_inputs(clip, bank, machine))
            for clip in simulated(seed, number, "train", "normal", REFERENCES)
        ]
        usual = np.mean(references, axis=0)
        for clip in simulated(seed, number, "test", "anomaly", count):
            inputs = model_inputs(clip, bank, machine)
            score = bank.anomaly_score(model(**inputs).embedding, machine).item()
            drawn = map_of(model, bank, inputs, machine)
            plain = map_of(model, bank, inputs, machine, with_profile=False)
            ways = drawn.values.numpy(), plain.values.numpy(), difference(model, inputs, usual)
            where = fault_cells(clip, drawn.axes)
            measured = zip(WAYS, (overlap(values, where) for values in ways), strict=True)
            yield {
                "machine": machine,
                "fault": clip.fault_kind,
                "found": bank.decide(score, machine).anomalous,
                "method": drawn.method,
                **dict(measured),
            }


def model_inputs(clip: Clip, bank: ReferenceBank, machine: str) -> dict[str, torch.Tensor]:
    """Return a simulated clip as a model takes it."""
    near, far = torch.from_numpy(clip.near)[None], torch.from_numpy(clip.far)[None]
    return {
        "near_values": near,
        "far_values": far,
        "attention_mask": torch.ones_like(near, dtype=torch.long),
        "front_end_strength": torch.tensor([bank.front_end_strength(machine)]),
    }


def map_of(
    model: Any,  # noqa: ANN401  an AsdModel
    bank: ReferenceBank,
    inputs: dict[str, torch.Tensor],
    machine: str,
    *,
    with_profile: bool = True,
) -> AnomalyMap:
    """Return a clip's map by the bank's detector."""
    profile = bank.profiles[machine] if with_profile else None
    detector = bank.fitted_detector(machine)
    drawn: AnomalyMap = model.anomaly_map(inputs, detector, machine=machine, profile=profile)
    return drawn


def spectrum_of(model: Any, inputs: dict[str, torch.Tensor]) -> NDArray[np.float32]:  # noqa: ANN401
    """Return the mean of a clip's spectrogram, (bins,), of the first channel that is heard."""
    features = next(iter(spectrograms(model, inputs).values()))
    spectrum: NDArray[np.float32] = mean_spectrum(model, features, inputs["attention_mask"]).numpy()
    return spectrum[0]


def difference(
    model: Any,  # noqa: ANN401  an AsdModel
    inputs: dict[str, torch.Tensor],
    usual: NDArray[np.float32],
) -> NDArray[np.float64]:
    """Return how far each cell's level lies above the references', (time, band)."""
    features = next(iter(spectrograms(model, inputs).values()))[0].numpy()
    time, _ = model.encoder.patch_grid(inputs["near_values"].shape[1])
    bins, size = patch_bins(model.encoder), model.encoder.config.patch_size
    above = (features[: time * size, : bins[-1]] - usual).reshape(time, size, -1).mean(axis=1)
    widths = np.diff(bins)
    return np.add.reduceat(above, bins[:-1], axis=1).astype(np.float64) / widths


def fault_cells(clip: Clip, axes: MapAxes) -> NDArray[np.bool_]:
    """Return the cells (time, band) where near's fault stands out most over all else."""
    assert clip.fault is not None  # simulated with it
    fault = cell_energy(clip.fault[0], axes)
    other = cell_energy(clip.near - clip.fault[0], axes)
    ratio = fault / (other + 1e-12)
    found: NDArray[np.bool_] = ratio >= np.quantile(ratio, 1 - FAULT_SHARE)
    return found


def cell_energy(
    waveform: NDArray[np.float32], axes: MapAxes, *, n_fft: int = 1024, hop_length: int = 128
) -> NDArray[np.float64]:
    """Return the energy of a waveform in each cell, (time, band)."""
    frames = np.lib.stride_tricks.sliding_window_view(waveform, n_fft)[::hop_length]
    power = np.abs(np.fft.rfft(frames * np.hanning(n_fft), axis=1)) ** 2
    seconds = (np.arange(len(frames)) * hop_length + n_fft / 2) / SAMPLING_RATE
    hertz = np.fft.rfftfreq(n_fft, 1 / SAMPLING_RATE)
    time, band = (
        (np.searchsorted(edges, values, side="right") - 1)[None]
        == np.arange(len(edges) - 1)[:, None]
        for edges, values in zip(axes, (seconds, hertz), strict=True)
    )
    energy: NDArray[np.float64] = time.astype(np.float64) @ power @ band.T.astype(np.float64)
    return energy


def overlap(values: NDArray[np.float64], where: NDArray[np.bool_]) -> dict[str, float]:
    """Return how well values tell some cells from the others, and their positive share there."""
    positive = values.clip(min=0)
    return {
        "auc": float(roc_auc_score(where.ravel(), values.ravel())),
        "mass": float(positive[where].sum() / max(positive.sum(), 1e-30)),
    }


def format_system(name: str, factories: Sequence[Sequence[Mapping[str, Any]]]) -> list[str]:
    """Return two tables of one system: each way to map, and each kind of fault."""
    everything = [row for rows in factories for row in rows]
    found = [[row for row in rows if row["found"]] for rows in factories]
    count = sum(len(rows) for rows in found)
    method = everything[0]["method"]
    lines = [
        f"{name} ({method}), {len(factories)} factories, {len(everything)} clips with a fault, "
        f"{count} of them above the threshold; means and 95 % intervals over factories",
        f"{'':<26}{'AUC, all':>24}{'AUC, found':>24}{'share, all':>24}{'share, found':>24}",
    ]
    for way in WAYS:
        line = f"{way:<26}"
        for figure in FIGURES:
            for clips in (factories, found):
                line += f"{format_mean(means(clips, way, figure)):>24}"
        lines.append(line)
    lines += [f"{'fault':<26}{'clips (found)':>14}" + "".join(f"{way:>26}" for way in WAYS)]
    for fault in sorted({row["fault"] for row in everything}):
        own = [row for row in everything if row["fault"] == fault]
        counts = f"{len(own)} ({sum(bool(row['found']) for row in own)})"
        cells = [f"AUC {means([own], way, 'auc')[0]:.2f}" for way in WAYS]
        lines.append(f"{fault:<26}{counts:>14}" + "".join(f"{cell:>26}" for cell in cells))
    return lines


def means(
    factories: Sequence[Sequence[Mapping[str, Any]]], way: str, figure: str
) -> NDArray[np.float64]:
    """Return the mean over clips in each factory that has any, (factories,)."""
    values = [[row[way][figure] for row in rows] for rows in factories if rows]
    return np.array([np.mean(clips) for clips in values])


def format_mean(values: NDArray[np.float64]) -> str:
    """Return a mean over factories and its 95 % interval, which one factory does not have."""
    if len(values) < 2:
        return f"{values[0]:.3f}" if len(values) else "-"
    mean, half = mean_interval(values)
    return f"{mean:.3f} ({mean - half:.3f} to {mean + half:.3f})"


@torch.inference_mode()
def draw_clip(path: Path, run: Path, seed: int, count: int) -> None:
    """Draw the first machine's clip with the highest score: its map, and its fault alone."""
    scorer: Any = load_scorer(run)
    model, bank = scorer.model, scorer.bank
    machine = f"2026/{machine_of(seed, 0).machine_type}/00"

    def score(clip: Clip) -> float:
        embedding = model(**model_inputs(clip, bank, machine)).embedding
        return float(bank.anomaly_score(embedding, machine))

    clip = max(simulated(seed, 0, "test", "anomaly", count), key=score)
    assert clip.fault is not None  # simulated with it
    inputs = model_inputs(clip, bank, machine)
    plot_anomaly_map(
        path,
        f"{machine}, fault: {clip.fault_kind}",
        model.heard_waveform(inputs)[0].numpy(),
        map_of(model, bank, inputs, machine).as_dict(),
        sampling_rate=SAMPLING_RATE,
        beside={"the fault alone, at near": clip.fault[0]},
        nearest=bank.nearest_references(model(**inputs).embedding, machine)[0],
    )
    print(path)


if __name__ == "__main__":
    script(main)

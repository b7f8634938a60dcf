"""What each front end is worth: dB of SI-SDR, official scores, speed; always, guarded, oracle.

For each factory seed: simulate machines of the preset `challenge`, in halls as they are and in
quieter ones, where there is less to gain and more to lose, with what near hears of machine and
noise alone; clean every clip with every front end; score the clips by 1-NN on log-mel and on
the quickstart's encoder with random weights, frozen. "guarded" falls back to near on the machines
where `nearfar.guard` says so, from their references alone; "oracle" falls back where near scored
better on the test clips, which nothing can know. The losses that the guard takes away are those of
machines that lose on one half of their test clips, as the other half measures them, both ways
round: on the same clips half of all "losses" would be luck. Seeds and front ends that are done are
not done again; `machines.csv` has a line for every machine.

python -m benchmarks.front_ends --seeds 60 61 62 63 64 --output_dir runs/front_ends
python -m benchmarks.front_ends --seeds 60 --output_dir runs/front_ends --figure clip.png
"""

import csv
import logging
import shutil
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import torch
from accelerate.utils import set_seed
from datasets import Dataset
from scipy.io import wavfile
from torch import Tensor, nn

from assembly.encoders import build_encoder
from assembly.models import build_model
from benchmarks.compare import METRICS
from benchmarks.front_ends_speed import (
    SAMPLING_RATE,
    measure,
    si_sdr,
    simulate_clips,
)
from benchmarks.log_mel import LogMelMean, nearest_neighbour_scores
from benchmarks.quickstart import RECIPE
from data_scripts.factory import FactoryArguments, PlannedClip, simulate_clip, simulate_factory
from data_scripts.near_far import decoded, known, load_near_far
from modeling import FRONT_ENDS, AsdFeatureExtractor, AsdModel, FrontEnd
from nearfar.arguments import check_names, parse_arguments, read_recipe, script
from nearfar.dcase_task2.metrics import official_score
from nearfar.embeddings import extract_embeddings, model_inputs
from nearfar.evaluation import evaluate_scores
from nearfar.files import read_json, write_json
from nearfar.guard import fit_guard
from nearfar.intervals import mean_interval
from nearfar.plots import plot_spectrograms
from nearfar.proxy_labels import ProxyLabels
from nearfar.score_table import ScoreTable
from nearfar.training_arguments import TrainArguments

JUDGES = ("log_mel", "encoder")
HALVES = ("even", "odd")  # of the test clips of each domain and condition, by their order
PARTS = ("whole", *HALVES)
SPEED, MACHINES = "speed.json", "machines.csv"
BATCH_SIZE = 16

Rows = list[dict[str, Any]]


@dataclass(kw_only=True)
class FrontEndsArguments:
    """Arguments of benchmarks.front_ends."""

    seeds: list[int] = field(metadata={"help": "Factory seeds; 40 to 45 tuned the guard."})
    output_dir: Path = field(metadata={"help": "Holds one folder per seed."})
    front_ends: list[str] = field(
        default_factory=lambda: list(FRONT_ENDS), metadata={"help": f"Of {', '.join(FRONT_ENDS)}."}
    )
    machines: int = field(default=3, metadata={"help": "Per factory."})
    source_train: int = field(default=100, metadata={"help": "Training clips, source domain."})
    target_train: int = field(default=10, metadata={"help": "Training clips, target domain."})
    test_per_group: int = field(
        default=25, metadata={"help": "Test clips per domain and condition."}
    )
    seconds: float = field(default=6.0, metadata={"help": "Length of a clip."})
    quieter_db: list[float] = field(
        default_factory=lambda: [0.0, 10.0],
        metadata={"help": "Halls that each machine is heard in: the noise falls by so much."},
    )
    judges: list[str] = field(
        default_factory=lambda: list(JUDGES), metadata={"help": f"Of {', '.join(JUDGES)}."}
    )
    keep_data: bool = field(default=False, metadata={"help": "Keep the simulated recordings."})
    figure: Path | None = field(
        default=None, metadata={"help": "Only draw a clip of the first seed, before and after."}
    )


def main() -> None:
    """Work through seeds and front ends, then print the table; or draw the figure."""
    logging.basicConfig(level=logging.WARNING)
    args = parse_arguments(FrontEndsArguments)
    check_names("front_ends", args.front_ends, FRONT_ENDS)
    check_names("judges", args.judges, JUDGES)
    if args.figure is not None:
        draw_clip(args.figure, args.seeds[0], args.seconds)
        return
    args.front_ends = list(dict.fromkeys(["near", *args.front_ends]))  # near is what all gain on
    results = {seed: evaluate_seed(seed, args) for seed in args.seeds}
    real_time = measure_speed(args.output_dir / SPEED, args.front_ends)
    write_machines(args.output_dir / MACHINES, results, args)
    for judge in args.judges:
        print("\n".join(format_judge(judge, results, real_time, args)))
        print()


def evaluate_seed(seed: int, args: FrontEndsArguments) -> dict[str, dict[str, Any]]:
    """Return each front end's results on one factory, by machine and hall; do what is not done."""
    results: dict[str, dict[str, Any]] = {name: {} for name in args.front_ends}
    for quieter_db in args.quieter_db:
        for name, machines in evaluate_hall(seed, quieter_db, args).items():
            hall = f", {quieter_db:g} dB quieter" if quieter_db else ""
            results[name] |= {f"{machine}{hall}": values for machine, values in machines.items()}
    return results


def evaluate_hall(
    seed: int, quieter_db: float, args: FrontEndsArguments
) -> dict[str, dict[str, Any]]:
    """Return each front end's results on a factory's machines in one kind of hall."""
    folder = args.output_dir / f"seed_{seed:03d}" / f"quieter_{quieter_db:g}"
    paths = {name: folder / f"{name}.json" for name in args.front_ends}
    if pending := [name for name, path in paths.items() if not is_done(path, args)]:
        data, cache = folder / "data", folder / "cache"
        simulate_factory(
            data,
            num_machines=args.machines,
            seed=seed,
            source_train=args.source_train,
            target_train=args.target_train,
            test_per_group=args.test_per_group,
            seconds=args.seconds,
            preset="challenge",
            quieter_db=quieter_db,
            components=True,
            show_progress=True,
        )
        clips = load_near_far(data, cache_dir=cache)
        judges = {judge: build_judge(judge, clips["train"], seed=seed) for judge in args.judges}
        for name in pending:
            print(f"factory {seed}, {quieter_db:g} dB quieter: {name}", flush=True)
            machines = evaluate(name, clips, judges, data)
            write_json(paths[name], {"sizes": sizes(args), "machines": machines})
        shutil.rmtree(cache)
        if not args.keep_data:
            shutil.rmtree(data)
    return {name: read_json(path)["machines"] for name, path in paths.items()}


def sizes(args: FrontEndsArguments) -> dict[str, float]:
    """Return what decides a factory beside its seed."""
    names = ("machines", "source_train", "target_train", "test_per_group", "seconds")
    return {name: getattr(args, name) for name in names}


def is_done(path: Path, args: FrontEndsArguments) -> bool:
    """Tell whether a front end's results are there, for all judges.

    Raises:
        ValueError: They are there for a factory of other sizes.
    """
    if not path.is_file():
        return False
    result = read_json(path)
    if result["sizes"] != sizes(args):
        raise ValueError(
            f"{path} has results for {result['sizes']}, but asked for is {sizes(args)}. Choose "
            "another output_dir, or the same sizes."
        )
    return all(judge in values for values in result["machines"].values() for judge in args.judges)


def part_of(table: ScoreTable, part: str) -> ScoreTable:
    """Return some of the test clips, every second one of each machine, domain and condition.

    Args:
        table: Of all test clips.
        part: Of `PARTS`.
    """
    if part == "whole":
        return table
    kept = np.zeros(len(table), bool)
    groups = zip(table.machines, table.domains, table.conditions, strict=True)
    rows: dict[tuple[str, ...], list[int]] = {}
    for row, group in enumerate(groups):
        rows.setdefault(group, []).append(row)
    for members in rows.values():
        kept[members[HALVES.index(part) :: 2]] = True
    return table.take(kept)


def build_judge(judge: str, clips: Dataset, *, seed: int) -> nn.Module:
    """Return what embeds cleaned clips."""
    return LogMelMean("near") if judge == "log_mel" else frozen_encoder(clips, seed=seed)


def frozen_encoder(clips: Dataset, *, seed: int) -> AsdModel:
    """Return what `train.py --no_training` makes of the quickstart recipe, without front end."""
    values = read_recipe(TrainArguments, RECIPE) | {"front_end": "near", "seed": seed}
    args = TrainArguments(**values, data_dir=Path(), output_dir=Path(), no_training=True)
    set_seed(seed)
    labels = ProxyLabels.from_clips(known(clips), parts=args.label_parts)
    return build_model(args, build_encoder(args), labels).asd


def evaluate(
    name: str, clips: Mapping[str, Dataset], judges: Mapping[str, nn.Module], data: Path
) -> dict[str, Any]:
    """Return a front end's results: machine -> SI-SDR gain, the guard's strength, metrics."""
    front_end, extractor = FRONT_ENDS[name](), AsdFeatureExtractor()
    splits = {split: list(cleaned(front_end, decoded(clips[split]))) for split in clips}
    guard = fit_guard(front_end, decoded(clips["train"]), extractor, batch_size=BATCH_SIZE)
    gains = si_sdr_gains(decoded(clips["test"]), splits["test"], data)
    results: dict[str, Any] = {
        machine: {"si_sdr_gain_db": gains[machine], "guard": decision._asdict()}
        for machine, decision in guard.items()
    }
    for judge, model in judges.items():
        references, tests = (
            extract_embeddings(
                model,
                splits[split],
                extractor,
                batch_size=BATCH_SIZE,
                description=split,
            )
            for split in ("train", "test")
        )
        table = nearest_neighbour_scores(
            references, tests, metric="euclidean" if judge == "log_mel" else "cosine"
        )
        for part in PARTS:
            metrics = evaluate_scores(part_of(table, part), num_resamples=0)["machines"]
            for machine, values in metrics.items():
                results[machine].setdefault(judge, {})[part] = [values[key] for key in METRICS]
    return results


@torch.inference_mode()
def cleaned(front_end: FrontEnd, clips: Dataset) -> Iterator[dict[str, Any]]:
    """Yield decoded rows with the cleaned near channel, and without the far one."""
    extractor = AsdFeatureExtractor()
    for start in range(0, len(clips), BATCH_SIZE):
        rows: Rows = [clips[i] for i in range(start, min(start + BATCH_SIZE, len(clips)))]
        batch = model_inputs(rows, extractor)
        lengths = batch["attention_mask"].sum(dim=1)
        waveforms = front_end(batch["near_values"], batch["far_values"], lengths)
        for row, waveform, length in zip(rows, waveforms.numpy(), lengths.tolist(), strict=True):
            yield row | {"near": waveform[:length], "far": None}


def si_sdr_gains(clips: Dataset, cleaned_clips: Rows, data: Path) -> dict[str, float]:
    """Return each machine's mean gain in dB, against near's recording of the machine alone."""
    gains: dict[str, list[float]] = {}
    for row, after in zip(clips, cleaned_clips, strict=True):
        below = Path("dev_data", "raw", row["machine_type"], "test", row["file_name"])
        target = wavfile.read(data / "components" / below)[1][:, 0]
        both = Tensor(np.stack([row["near"], after["near"]]))
        before, now = si_sdr(both, Tensor(target)[None].expand(2, -1)).tolist()
        gains.setdefault(row["machine"], []).append(now - before)
    return {machine: float(np.mean(values)) for machine, values in gains.items()}


def measure_speed(path: Path, names: Sequence[str]) -> dict[str, float]:
    """Return how many times faster than real time each front end is on one thread; measure once."""
    known_speed = read_json(path) if path.is_file() else {}
    if pending := [name for name in names if name not in known_speed]:
        threads = torch.get_num_threads()
        torch.set_num_threads(1)
        machine, near, far = simulate_clips(8, 10 * SAMPLING_RATE, seed=0)
        seconds, _ = measure(pending, machine, near, far, repetitions=3)
        torch.set_num_threads(threads)
        known_speed |= {name: 80 / seconds[name] for name in pending}
        write_json(path, known_speed)
    return {name: known_speed[name] for name in names}


class Choices(NamedTuple):
    """Metrics of all machines of a factory (machines, 3), by who decides what the judge hears."""

    near: np.ndarray
    always: np.ndarray
    guarded: np.ndarray
    oracle: np.ndarray


def choices(results: Mapping[str, Any], name: str, judge: str, part: str = "whole") -> Choices:
    """Return what one front end makes of a factory's machines.

    Args:
        results: Front end -> machine -> results, of one factory.
        name: Of the front end.
        judge: Of `JUDGES`.
        part: Of the test clips, of `PARTS`.
    """
    machines = sorted(results[name])
    near, always = (
        np.array([results[front_end][machine][judge][part] for machine in machines])
        for front_end in ("near", name)
    )
    kept = np.array([results[name][machine]["guard"]["strength"] > 0 for machine in machines])
    better = machine_scores(always) > machine_scores(near)
    return Choices(
        near,
        always,
        np.where(kept[:, None], always, near),
        np.where(better[:, None], always, near),
    )


def machine_scores(metrics: np.ndarray) -> np.ndarray:
    """Return the official score of each machine by itself, (machines,)."""
    return np.array([official_score([row]) for row in metrics])


def write_machines(
    path: Path, results: Mapping[int, Mapping[str, Any]], args: FrontEndsArguments
) -> None:
    """Write a line per factory, machine and front end."""
    header = ["seed", "machine", "front_end", "si_sdr_gain_db", "strength"]
    header += [f"{judge}_{key}" for judge in args.judges for key in METRICS]
    with path.open("w", newline="", encoding="utf-8") as file:
        writer = csv.writer(file)
        writer.writerow(header)
        for seed, by_name in results.items():
            for name, machines in by_name.items():
                for machine, values in sorted(machines.items()):
                    metrics = [value for judge in args.judges for value in values[judge]["whole"]]
                    row = [values["si_sdr_gain_db"], values["guard"]["strength"], *metrics]
                    writer.writerow([seed, machine, name, *(f"{value:.4f}" for value in row)])


def format_judge(
    judge: str,
    results: Mapping[int, Mapping[str, Any]],
    real_time: Mapping[str, float],
    args: FrontEndsArguments,
) -> list[str]:
    """Return a table: a line per front end, official scores in percent, over all factories."""
    lines = [
        f"{judge}, {len(results)} factories of {args.machines} machines in {len(args.quieter_db)} "
        "kinds of halls; official score minus near's, with paired 95 % intervals over factories",
        f"{'front end':<24}{'x real time':>12}{'SI-SDR':>9}{'score':>8}"
        f"{'always':>24}{'guarded':>24}{'oracle':>8}{'gain kept':>11}{'loss taken':>12}",
    ]
    for name in args.front_ends:
        factories = [choices(by_name, name, judge) for by_name in results.values()]
        values = [v for by_name in results.values() for v in by_name[name].values()]
        gain_db = np.mean([value["si_sdr_gain_db"] for value in values])
        official = 100 * np.array([[official_score(m) for m in each] for each in factories])
        line = f"{name:<24}{real_time[name]:>12.0f}{gain_db:>6.1f} dB{official[:, 1].mean():>8.2f}"
        if name != "near":
            ahead = official - official[:, :1]  # (factories, 4)
            for column in (1, 2):
                line += f"{format_interval(ahead[:, column]):>24}"
            line += f"{ahead[:, 3].mean():>+8.2f}"
            halves = [
                [choices(by_name, name, judge, half) for by_name in results.values()]
                for half in HALVES
            ]
            kept, taken = gain_kept(factories), losses_taken(halves)
            line += f"{percent(kept):>11}{percent(taken):>12}"
        lines.append(line)
    return lines


def machine_gains(factories: Sequence[Choices]) -> tuple[np.ndarray, np.ndarray]:
    """Return by how much each machine's official score exceeds near's, always and guarded."""
    near, always, guarded, _ = (
        np.concatenate([machine_scores(metrics) for metrics in part])
        for part in zip(*factories, strict=True)
    )
    return always - near, guarded - near


def gain_kept(factories: Sequence[Choices]) -> float | None:
    """Return the share of the mean gain that the guard keeps; None where nothing was gained."""
    always, guarded = (gains.mean() for gains in machine_gains(factories))
    return float(guarded / always) if always > 0 else None


def losses_taken(halves: Sequence[Sequence[Choices]]) -> float | None:
    """Return the share of the losses that the guard takes away.

    Machines that lose are found on one half of the test clips and measured on the other.

    Args:
        halves: Factories by each half.

    Returns:
        None where the machines found do not lose on the other half.
    """
    found, other = (machine_gains(half) for half in halves)
    always, guarded = (
        sum(measured[i][by[0] < 0].sum() for by, measured in ((found, other), (other, found)))
        for i in range(2)
    )
    return float(1 - guarded / always) if always < 0 else None


def format_interval(differences: np.ndarray) -> str:
    """Return a mean and its interval; one factory has none."""
    if len(differences) < 2:
        return f"{differences.mean():+.2f}"
    mean, half = mean_interval(differences)
    return f"{mean:+.2f} ({mean - half:+.2f} to {mean + half:+.2f})"


def percent(share: float | None) -> str:
    """Return a share in percent, "-" where there is none."""
    return "-" if share is None else f"{100 * share:.0f} %"


def draw_clip(path: Path, seed: int, seconds: float) -> None:
    """Draw near, far and near cleaned by least squares, of the first machine's first test clip."""
    arguments = FactoryArguments(1, seed, seconds=seconds, preset="challenge")
    clip = simulate_clip(arguments, PlannedClip(0, "test", "source", "normal", 0))
    near, far = Tensor(clip.near)[None], Tensor(clip.far)[None]
    front_end = FRONT_ENDS["complex_least_squares"]()
    after = front_end(near, far, torch.tensor([near.shape[1]]))[0].numpy()
    panels = {"near": clip.near, "far": clip.far, "near, cleaned": after}
    panels["the machine alone"] = clip.machine[0]
    title = "One clip, cleaned by complex least squares"
    plot_spectrograms(path, title, panels, sampling_rate=SAMPLING_RATE)
    print(path)


if __name__ == "__main__":
    script(main)

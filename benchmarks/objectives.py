"""What each objective is worth on factories that nothing was tuned on, and what each part of one.

A small encoder is pre-trained on nine machines of another factory, and made noise-aware by their
simulated pairs. For each factory seed: simulate three machines of the preset `challenge`, and train
and score every row of `objectives.yaml` on them by train.py and score.py, with equal budgets. Then
two tables: official scores, and how far each row is ahead of the one that its table compares with,
paired over factories. Rows that are done are not done again. Several of these commands may run at
once: each takes the seeds that are free.

python -m benchmarks.objectives --output_dir runs/objectives
"""

import contextlib
import hashlib
import io
import logging
import shutil
import time
from collections.abc import Iterator, Mapping, Set
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import datasets
import numpy as np
from filelock import FileLock, Timeout

from benchmarks import lora
from benchmarks.compare import METRICS
from benchmarks.front_ends import format_interval
from benchmarks.noise_aware import distillation
from benchmarks.objective_tables import NOISE_AWARE, PRETRAINED, Row, Table, read_tables
from benchmarks.quickstart import ROOT, run_steps
from data_scripts.factory import simulate_factory
from data_scripts.factory.presets import PresetName
from nearfar.arguments import check_names, parse_arguments, script
from nearfar.evaluation import read_metrics
from nearfar.files import read_json, write_json
from nearfar.in_process import run_main

TABLES = ROOT / "benchmarks" / "objectives.yaml"
ENCODER = "beats"  # of lora.ENCODERS
# Full training on near, and one vector a clip, as most rows read it.
PRETRAINING = [*lora.PRETRAINING, "--front_end", "near", "--join_bands", "false"]
PRETRAINING += ["--pooling_options", '{"keep_bands": false}']
PRETRAINING_FACTORY = [*lora.PRETRAINING_FACTORY, "--preset", "challenge", "--components"]
SIZES = ("machines", "source_train", "target_train", "test_per_group", "seconds")


@dataclass(kw_only=True)
class ObjectivesArguments:
    """Arguments of benchmarks.objectives."""

    output_dir: Path = field(metadata={"help": "Holds one folder per seed."})
    seeds: list[int] = field(
        default_factory=lambda: [70, 71, 72, 73, 74],
        metadata={"help": "Factory seeds; the training seed is the same."},
    )
    rows: list[str] | None = field(default=None, metadata={"help": "Of the tables; None: all."})
    tables: list[Path] = field(
        default_factory=lambda: [TABLES], metadata={"help": "Files of tables; see the first."}
    )
    encoder_checkpoint: Path | None = field(
        default=None, metadata={"help": "Folder of an encoder; None pre-trains a small one."}
    )
    machines: int = field(default=3, metadata={"help": "Per factory."})
    source_train: int = field(default=100, metadata={"help": "Training clips, source domain."})
    target_train: int = field(default=10, metadata={"help": "Training clips, target domain."})
    test_per_group: int = field(
        default=25, metadata={"help": "Test clips per domain and condition."}
    )
    seconds: float | None = field(
        default=6.0, metadata={"help": "Length of a clip; None: 6 to 16, by machine."}
    )
    preset: PresetName = field(default="challenge", metadata={"help": "What is simulated."})
    keep_data: bool = field(default=False, metadata={"help": "Keep the simulated recordings."})
    print_only: bool = field(default=False, metadata={"help": "Only print what is done."})


def main() -> None:
    """Work through seeds and rows, then print the tables."""
    logging.basicConfig(level=logging.WARNING)
    args = parse_arguments(ObjectivesArguments)
    tables, rows = read_tables(args.tables)
    check_names("rows", args.rows or [], rows)
    tables = [table.only(args.rows or list(rows)) for table in tables]
    tables = [table for table in tables if table.names]
    wanted = {name: rows[name] for table in tables for name in table.with_reference()}
    failures = [] if args.print_only else work(wanted, args)
    for table in tables:
        print("\n".join(format_table(table, args)), end="\n\n")
    if failures:
        raise ValueError("These rows have no score: " + "; ".join(failures))


def work(rows: Mapping[str, Row], args: ObjectivesArguments) -> list[str]:
    """Do what is not done, free seeds first; return what failed."""
    encoders = made_encoders(args, {row.encoder for row in rows.values()})
    failures: list[str] = []
    waiting = list(args.seeds)
    for seconds in (0.0, -1.0):  # then wait for other processes
        for seed in list(waiting):
            seed_dir(args, seed).mkdir(parents=True, exist_ok=True)
            with contextlib.suppress(Timeout):
                with FileLock(seed_dir(args, seed) / ".lock", timeout=seconds):
                    failures += evaluate_seed(rows, seed, encoders, args)
                waiting.remove(seed)
    return failures


def made_encoders(args: ObjectivesArguments, wanted: Set[str]) -> dict[str, Path]:
    """Return the folders of the encoders that rows start from; one process makes them.

    Args:
        args: Of the benchmark.
        wanted: Of ENCODERS, "" for none; the noise-aware one is made only for a row of it.
    """
    if not any(wanted):
        return {}
    folder = (args.output_dir / "pretraining").resolve()
    made = {PRETRAINED: lora.encoder_folder(folder, ENCODER)}
    if args.encoder_checkpoint is not None:
        if not (args.encoder_checkpoint / lora.ENCODER_FILE).is_file():
            raise FileNotFoundError(
                f"{args.encoder_checkpoint} is no folder of an encoder. Make one with `python -m "
                "modeling.convert_original`."
            )
        made[PRETRAINED] = args.encoder_checkpoint.resolve()
    if NOISE_AWARE in wanted:
        made[NOISE_AWARE] = folder / NOISE_AWARE
    folder.mkdir(parents=True, exist_ok=True)
    with FileLock(folder / ".lock"):
        missing = {n for n, place in made.items() if not (place / lora.ENCODER_FILE).is_file()}
        if PRETRAINED in missing:
            lora.pretrain(
                [ENCODER],
                folder,
                factory=PRETRAINING_FACTORY,
                training=PRETRAINING,
                keep_data=args.keep_data or NOISE_AWARE in missing,
            )
        if NOISE_AWARE in missing:
            data, seed = folder / "data" / "pretraining", lora.PRETRAINING_SEED
            teach = distillation(data, made[PRETRAINED], made[NOISE_AWARE], seed)
            pairs = lora.simulation(data, seed, PRETRAINING_FACTORY)
            run_steps([pairs, teach], folder / "cache")
            if not args.keep_data:
                shutil.rmtree(data)
    return made


def evaluate_seed(
    rows: Mapping[str, Row], seed: int, encoders: Mapping[str, Path], args: ObjectivesArguments
) -> list[str]:
    """Do the rows of a factory that are not done; return what failed."""
    settings = {name: setting(row, encoders, args) for name, row in rows.items()}
    pending = [n for n in rows if not is_done(result_file(args, seed, n), settings[n])]
    if not pending:
        return []
    folder = seed_dir(args, seed).resolve()
    data, system, networks = folder / "data", folder / "system", folder / "networks"
    simulate_factory(
        data,
        num_machines=args.machines,
        seed=seed,
        source_train=args.source_train,
        target_train=args.target_train,
        test_per_group=args.test_per_group,
        seconds=args.seconds,
        preset=args.preset,
        show_progress=True,
    )
    shutil.rmtree(networks, ignore_errors=True)  # of a command that was stopped
    failures = []
    for name in pending:
        shutil.rmtree(system, ignore_errors=True)
        started = time.process_time()
        shared = networks / rows[name].networks if rows[name].networks else None
        trained = shared if shared is not None and shared.is_dir() else None
        commands = rows[name].commands(
            data=data, folder=system, encoders=encoders, seed=seed, networks=trained
        )
        try:
            with private_cache(folder / "cache"), quiet():
                for module, words in commands:
                    run_main(module, words)
        except (ValueError, FloatingPointError) as error:
            failures.append(f"{name}, factory {seed}: {error}")
            print(failures[-1], flush=True)
            continue
        if shared is not None and trained is None:
            shutil.copytree(system / "run" / "trainer_state", shared)
        metrics = read_metrics(system / "scores")
        values = {
            machine: [of[key] for key in METRICS] for machine, of in metrics["machines"].items()
        }
        result = {"row": name, "seed": seed, "setting": settings[name]}
        result |= {"official_score": metrics["official_score"], "machines": values}
        result |= {"seconds": time.process_time() - started}
        write_json(result_file(args, seed, name), result)
        print(
            f"factory {seed}, {name}: {100 * metrics['official_score']:.2f}, "
            f"{result['seconds']:.0f} s",
            flush=True,
        )
    for used in (system, networks, folder / "cache"):
        shutil.rmtree(used, ignore_errors=True)
    if not args.keep_data:
        shutil.rmtree(data)
    return failures


def setting(row: Row, encoders: Mapping[str, Path], args: ObjectivesArguments) -> dict[str, Any]:
    """Return what decides a row's scores beside the seed, as JSON gives it back."""
    sizes = {name: getattr(args, name) for name in SIZES}
    if args.preset != "challenge":  # which older results do not name
        sizes["preset"] = args.preset
    weights = row.weights(encoders)
    digest = hashlib.sha256()
    for path in sorted(weights.glob("*.safetensors")) if weights else []:
        digest.update(path.read_bytes())
    return {"sizes": sizes, "values": row.values, "encoder": row.encoder and digest.hexdigest()}


def is_done(path: Path, due: Mapping[str, Any]) -> bool:
    """Tell whether a row's result is there.

    Raises:
        ValueError: It is there for other sizes, values or weights.
    """
    if not path.is_file():
        return False
    found = read_json(path)["setting"]
    if changed := [name for name in due if found[name] != due[name]]:
        differences = ", ".join(f"{name} {found[name]} for {due[name]}" for name in changed)
        raise ValueError(f"{path} has {differences}. Choose another output_dir, or remove it.")
    return True


def seed_dir(args: ObjectivesArguments, seed: int) -> Path:
    """Return where a factory's results are."""
    return args.output_dir / f"seed_{seed:03d}"


def result_file(args: ObjectivesArguments, seed: int, name: str) -> Path:
    """Return where a row's result is."""
    plain = "".join(letter if letter.isalnum() else "_" for letter in name)
    return seed_dir(args, seed) / f"{plain.strip('_')}.json"


@contextlib.contextmanager
def private_cache(folder: Path) -> Iterator[None]:
    """Let `datasets` keep its rows in a folder, which then goes with the recordings."""
    before = datasets.config.HF_DATASETS_CACHE
    datasets.config.HF_DATASETS_CACHE = folder
    try:
        yield
    finally:
        datasets.config.HF_DATASETS_CACHE = before


@contextlib.contextmanager
def quiet() -> Iterator[None]:
    """Silence what the scripts print and log of themselves."""
    before = logging.root.manager.disable
    logging.disable(logging.INFO)
    try:
        with contextlib.redirect_stdout(io.StringIO()):
            yield
    finally:
        logging.disable(before)


def format_table(table: Table, args: ObjectivesArguments) -> list[str]:
    """Return the lines of a table; a row counts over the factories on which it is done."""
    results = {
        name: {
            seed: read_json(path)
            for seed in args.seeds
            if (path := result_file(args, seed, name)).is_file()
        }
        for name in table.with_reference()
    }
    ahead = f"ahead of {table.against}"
    lines = [
        f"{table.title}: {len(args.seeds)} factories of {args.machines} machines; official score, "
        "with paired 95 % intervals over factories; s: of the processor, for training and scoring",
        f"{'row':<30}{'official (sd)':>16}{ahead:>32}{'on':>7}"
        f"{'src AUC':>9}{'tgt AUC':>9}{'pAUC':>7}{'s':>6}",
    ]
    reference = results[table.against]
    for name in table.with_reference():
        done = results[name]
        if not done:
            lines.append(f"{name:<30}{'-':>16}")
            continue
        official = 100 * np.array([result["official_score"] for result in done.values()])
        deviation = f" ({official.std(ddof=1):.2f})" if len(done) > 1 else ""
        line = f"{name:<30}{f'{official.mean():.2f}{deviation}':>16}"
        difference, wins = "", ""
        if name != table.against and (common := sorted(set(done) & set(reference))):
            scores = [[r[s]["official_score"] for s in common] for r in (done, reference)]
            gains = 100 * np.subtract(*scores)
            difference, wins = format_interval(gains), f"{(gains > 0).sum()}/{len(gains)}"
        line += f"{difference:>32}{wins:>7}"
        means = 100 * np.mean([m for r in done.values() for m in r["machines"].values()], axis=0)
        seconds = np.mean([result["seconds"] for result in done.values()])
        lines.append(f"{line}{means[0]:>9.2f}{means[1]:>9.2f}{means[2]:>7.2f}{seconds:>6.0f}")
    return lines


if __name__ == "__main__":
    script(main)

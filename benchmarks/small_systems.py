"""One small encoder, as it is and fine-tuned by LoRA: the systems that several benchmarks judge.

It is pre-trained on nine machines of another factory, as for benchmarks.objectives: the folder that
either makes (`pretraining/beats/encoder`) serves the other as --encoder_checkpoint.
"""

import shutil
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any

import train
from benchmarks import lora
from benchmarks.objectives import ENCODER, PRETRAINING, PRETRAINING_FACTORY, private_cache, quiet
from benchmarks.quickstart import RECIPE
from data_scripts.factory import simulate_factory
from nearfar.hub import RUN_FILE
from nearfar.in_process import run_main

FROZEN, FINE_TUNED = "frozen", "fine-tuned"
SYSTEMS: dict[str, list[Any]] = {  # options of train.py beside the quickstart's recipe
    FROZEN: lora.SYSTEMS["frozen"],
    FINE_TUNED: lora.SYSTEMS["LoRA"],
}


def pretrained_encoder(folder: Path, checkpoint: Path | None, *, keep_data: bool) -> Path:
    """Return the folder of the encoder that the systems start from.

    Args:
        folder: Where one is pre-trained, unless it is there.
        checkpoint: Another encoder's folder, to be taken instead.
        keep_data: Keep the recordings of the pre-training.

    Raises:
        FileNotFoundError: `checkpoint` is no folder of an encoder.
    """
    if checkpoint is not None:
        if not (checkpoint / lora.ENCODER_FILE).is_file():
            raise FileNotFoundError(
                f"{checkpoint} is no folder of an encoder. Give one that this benchmark or "
                "benchmarks.objectives made, DIR/pretraining/beats/encoder."
            )
        return checkpoint.resolve()
    place = (folder / "pretraining").resolve()
    encoder = lora.encoder_folder(place, ENCODER)
    if not (encoder / lora.ENCODER_FILE).is_file():
        options = {"factory": PRETRAINING_FACTORY, "training": PRETRAINING, "keep_data": keep_data}
        lora.pretrain([ENCODER], place, **options)
    return encoder


def make_systems(
    systems: Mapping[str, Sequence[Any]],
    folder: Path,
    *,
    seed: int,
    encoder: Path,
    sizes: Mapping[str, Any],
) -> None:
    """Simulate a factory, and make the systems that are not there.

    Args:
        systems: Name of each -> its options of train.py.
        folder: Gets the recordings (`data`) and a run folder of each system (`<its name>_run`).
        seed: Of factory and training.
        encoder: Folder of the pre-trained encoder.
        sizes: The other arguments of `simulate_factory`.
    """
    simulate_factory(folder / "data", seed=seed, show_progress=True, **sizes)
    for name, options in systems.items():
        run = run_folder(folder, name)
        if (run / RUN_FILE).is_file():
            continue
        shutil.rmtree(run, ignore_errors=True)
        words = ["--recipe", RECIPE, "--data_dir", folder / "data", "--output_dir", run]
        words += ["--encoder_config", "none", "--encoder_checkpoint", encoder, "--seed", seed]
        print(f"factory {seed}: {name}", flush=True)
        with private_cache(folder / "cache"), quiet():
            run_main(train, [*words, *options])


def run_folder(folder: Path, system: str) -> Path:
    """Return where a system's run is."""
    return folder / f"{system.replace(', ', '_').replace(' ', '_')}_run"


def remove_recordings(folder: Path, systems: Iterable[str], *, keep_data: bool) -> None:
    """Remove the cache of `datasets`, and unless they are to be kept recordings and runs."""
    shutil.rmtree(folder / "cache", ignore_errors=True)
    for used in () if keep_data else (folder / "data", *(run_folder(folder, s) for s in systems)):
        shutil.rmtree(used)

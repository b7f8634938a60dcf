"""How near the encoders come to their authors' code: `python -m benchmarks.parity FOLDER`.

FOLDER holds beats/, eat/ or fisher/, each with checkpoints in the authors' format and with
io.safetensors, what the authors' code made of some clips. What a folder lacks is left out. The
tolerances are those of the tests: float32 rounding of the encoder, and what rounding of the
spectrogram becomes.
"""

import logging
import sys
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path
from typing import NamedTuple

import torch
from safetensors.torch import load_file
from torch import Tensor

from modeling.convert_original import load_original
from nearfar.arguments import script

RATES = (16_000, 44_100, 8_000, 1_000)


class Comparison(NamedTuple):
    """An array of the authors', and ours."""

    checkpoint: str
    array: str
    ours: Tensor
    tolerance: float


def compare_beats(folder: Path, io: Mapping[str, Tensor]) -> Iterator[Comparison]:
    """Compare BEATs with its authors' outputs."""
    model = load_original(folder / "pretrained.pt")
    classifier = load_original(folder / "finetuned.pt", head=True)
    clips, long = io["wav"], io["wav_long"]
    output = model(input_features=io["fbank"], output_hidden_states=True)
    yield Comparison("pretrained.pt", "fbank", model.spectrogram(clips), 1e-3)
    yield Comparison("pretrained.pt", "patch_embed", model.patch_embedding(io["fbank"]), 3e-5)
    yield Comparison("pretrained.pt", "layers", torch.stack(output.hidden_states), 3e-5)
    yield Comparison("pretrained.pt", "features", model(clips).last_hidden_state, 1e-3)
    yield Comparison("pretrained.pt", "features_long", model(long).last_hidden_state, 1e-4)
    yield Comparison("finetuned.pt", "probs", classifier(clips).logits.sigmoid(), 1e-4)
    yield Comparison("finetuned.pt", "probs_long", classifier(long).logits.sigmoid(), 1e-4)


def compare_eat(folder: Path, io: Mapping[str, Tensor]) -> Iterator[Comparison]:
    """Compare EAT, in fairseq's form and in that of its Hub port, with its authors' outputs."""
    clips = io["wav"]
    for name in ("pretrained_fairseq.pt", "hf_pretrain"):
        if not (folder / name).exists():
            continue
        model = load_original(folder / name)
        model.config.target_length = None
        features = io["fbank_var"][:, 0]
        output = model(input_features=features, output_hidden_states=True)
        spectrogram = model.spectrogram(clips[: len(features)])
        yield Comparison(name, "fbank_var", spectrogram[:, None], 1e-3)
        yield Comparison(name, "layers", torch.stack(output.hidden_states), 3e-5)
        yield Comparison(name, "features_var", model(clips).last_hidden_state, 5e-5)
        model.config.target_length = 1024
        yield Comparison(name, "features", model(clips).last_hidden_state, 5e-5)
    for name, array in (("finetuned_fairseq.pt", "logits"), ("hf_finetune", "hf_logits")):
        model = load_original(folder / name, head=True)
        for length, suffix in ((None, "_var"), (1024, "")):
            model.config.target_length = length
            if array + suffix in io:
                yield Comparison(name, array + suffix, model(clips).logits, 1e-4)


def compare_fisher(folder: Path, io: Mapping[str, Tensor]) -> Iterator[Comparison]:
    """Compare FISHER at each sampling rate with its authors' outputs."""
    model = load_original(folder / "fisher.pt")
    for rate in RATES:
        clip, features = io[f"wav_{rate}"][None], io[f"spec_{rate}"][None]
        ours = model.spectrogram(clip, sampling_rate=rate)[0]
        output = model(input_features=features, sampling_rate=rate)
        yield Comparison("fisher.pt", f"spec_{rate}", ours, 1e-3)
        yield Comparison("fisher.pt", f"tokens_{rate}", output.last_hidden_state[0], 3e-5)
        embedding = model(clip, sampling_rate=rate).pooler_output
        yield Comparison("fisher.pt", f"embedding_{rate}", embedding, 1e-4)
        model.config.target_length = 1024
        padded = model(clip, sampling_rate=rate).pooler_output
        yield Comparison("fisher.pt", f"embedding_pad1024_{rate}", padded, 1e-4)
        model.config.target_length = None
    batch = model(io["wav_batch"]).pooler_output
    yield Comparison("fisher.pt", "embedding_batch", batch, 1e-4)
    long = model(io["wav_long_1000"][None], sampling_rate=1_000).pooler_output
    yield Comparison("fisher.pt", "embedding_long_1000", long, 1e-4)
    silent = model(io["wav_silence"][None]).pooler_output
    yield Comparison("fisher.pt", "embedding_silence", silent, 5e-2)


ENCODERS: dict[str, Callable[[Path, Mapping[str, Tensor]], Iterator[Comparison]]] = {
    "beats": compare_beats,
    "eat": compare_eat,
    "fisher": compare_fisher,
    "fisher_bw100": compare_fisher,
}


@torch.inference_mode()
def parity_rows(folder: Path) -> list[tuple[str, str, str, float, float]]:
    """Return (encoder, checkpoint, array, largest absolute difference, tolerance) for each array.

    Raises:
        FileNotFoundError: The folder holds no fixtures.
        ValueError: An array has another shape than ours.
    """
    rows = []
    for name, compare in ENCODERS.items():
        path = folder / name / "io.safetensors"
        if not path.is_file():
            continue
        io = load_file(path)
        for checkpoint, array, ours, tolerance in compare(folder / name, io):
            if array not in io:
                continue
            if ours.shape != io[array].shape:
                raise ValueError(
                    f"{path}: {array} is {tuple(io[array].shape)}, ours {tuple(ours.shape)}."
                )
            rows.append((name, checkpoint, array, (ours - io[array]).abs().max().item(), tolerance))
    if not rows:
        raise FileNotFoundError(f"{folder} holds no beats/, eat/ or fisher/ with io.safetensors.")
    return rows


def main(arguments: list[str]) -> None:
    """Print the table; end with 1 where a difference is above its tolerance."""
    logging.basicConfig(format="%(message)s", level=logging.WARNING)
    if len(arguments) != 1:
        raise ValueError(f"Give one folder, got {arguments}.")
    rows = parity_rows(Path(arguments[0]))
    print(f"{'encoder':<14}{'checkpoint':<23}{'array':<26}{'max error':>10}{'tolerance':>11}")
    for encoder, checkpoint, array, error, tolerance in rows:
        print(f"{encoder:<14}{checkpoint:<23}{array:<26}{error:>10.1e}{tolerance:>11.0e}")
    if above := [row for row in rows if row[3] > row[4]]:
        raise ValueError(f"{len(above)} of {len(rows)} arrays differ by more than the tolerance.")


if __name__ == "__main__":
    script(lambda: main(sys.argv[1:]))

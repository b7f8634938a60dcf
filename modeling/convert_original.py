"""The authors' checkpoints, turned into ours: `load_original`, and a command that saves the result.

Nothing else here reads pickled weights, and this unpickles only tensors and plain containers.
Scripts import it; a published checkpoint never needs it.
"""

import argparse
import logging
import os
import shutil
import tempfile
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from transformers import PreTrainedModel

from .convert_beats import convert_beats, is_beats
from .convert_eat import convert_eat, is_eat
from .convert_fisher import convert_fisher, is_fisher
from .original_checkpoint import describe, read_checkpoint

logger = logging.getLogger(__name__)


@dataclass(frozen=True)
class Converter:
    """How one encoder's original checkpoints are known and converted.

    Attributes:
        recognises: checkpoint -> whether it is of this encoder.
        convert: (checkpoint, head) -> model; raises ValueError without the file's name.
    """

    recognises: Callable[[Mapping[str, Any]], bool]
    convert: Callable[[Mapping[str, Any], bool], PreTrainedModel]


CONVERTERS = {
    "beats": Converter(is_beats, convert_beats),
    "fisher": Converter(is_fisher, convert_fisher),
    "eat": Converter(is_eat, convert_eat),
}


def load_original(path: str | os.PathLike[str], *, head: bool = False) -> PreTrainedModel:
    """Read a checkpoint of an encoder's authors into our model, on the CPU, in float32.

    Args:
        path: The authors' file, say BEATs_iter3.pt, or a folder with the config.json and the
            model.safetensors that they put on the Hub. Of a file, nothing but tensors, plain
            containers and plain values is unpickled.
        head: Return the fine-tuned classifier instead of the bare encoder.

    Raises:
        FileNotFoundError: There is no such file or folder.
        ValueError: It is not a checkpoint that can be converted whole.
    """
    path = Path(path)
    checkpoint = read_checkpoint(path)
    try:
        name = recognise(checkpoint)
        model = CONVERTERS[name].convert(checkpoint, head)
    except ValueError as error:
        raise ValueError(f"{path}: {error}") from error
    logger.info("%s: %s, %d parameters", path, type(model).__name__, model.num_parameters())
    model.eval()
    return model


def recognise(checkpoint: Mapping[str, Any]) -> str:
    """Return which encoder, a key of `CONVERTERS`, a checkpoint belongs to."""
    for name, converter in CONVERTERS.items():
        if converter.recognises(checkpoint):
            return name
    raise ValueError(
        f"The state dict is of no known encoder ({', '.join(CONVERTERS)}): it is "
        f"{describe(checkpoint['model'])}. Take the original file."
    )


def save_converted(checkpoint: Path, output_dir: Path, *, head: bool = False) -> PreTrainedModel:
    """Convert a checkpoint and save the model, its configuration and its code: whole or not at all.

    Raises:
        FileExistsError: `output_dir` is there and not an empty folder.
    """
    if output_dir.exists() and not (output_dir.is_dir() and not any(output_dir.iterdir())):
        raise FileExistsError(
            f"{output_dir} exists and is not an empty folder. Choose another one."
        )
    model = load_original(checkpoint, head=head)
    output_dir.parent.mkdir(parents=True, exist_ok=True)
    unfinished = Path(tempfile.mkdtemp(prefix=f".{output_dir.name}.", dir=output_dir.parent))
    try:
        folder = unfinished / output_dir.name  # a plain mkdir: mkdtemp hides its folder from others
        model.save_pretrained(folder)
        if output_dir.exists():
            output_dir.rmdir()
        folder.rename(output_dir)
    finally:
        shutil.rmtree(unfinished, ignore_errors=True)
    return model


def main() -> None:
    """Convert one checkpoint on the command line."""
    parser = argparse.ArgumentParser(
        prog="python -m modeling.convert_original",
        description="Turn an authors' checkpoint into a folder for from_pretrained.",
    )
    parser.add_argument("checkpoint", type=Path, help="the authors' file or Hub folder")
    parser.add_argument("--output_dir", type=Path, required=True, help="a folder that is not there")
    parser.add_argument("--head", action="store_true", help="keep the fine-tuned classifier")
    args = parser.parse_args()
    logging.basicConfig(level=logging.WARNING, format="%(levelname)s: %(message)s")
    try:
        model = save_converted(args.checkpoint, args.output_dir, head=args.head)
    except (ValueError, OSError) as error:
        raise SystemExit(f"error: {error}") from error
    parameters = f"{model.num_parameters():,} parameters"
    print(f"{args.output_dir}: {type(model).__name__}, {parameters}")  # noqa: T201 a script's last line


if __name__ == "__main__":
    main()

__all__ = ["CONVERTERS", "Converter", "load_original", "save_converted"]

"""Cross-fitting: every normal clip scored by an encoder, and a bank, that were made without it."""

import hashlib
import json
import logging
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
from numpy.typing import NDArray
from safetensors import SafetensorError, safe_open
from safetensors.numpy import save_file

from nearfar.embeddings import EmbeddingTable
from nearfar.files import whole_file

EMBEDDINGS_FILE = "embeddings.safetensors"

logger = logging.getLogger(__name__)


class Fold(NamedTuple):
    """One part of the clips, and where the encoder that is trained without it keeps its state.

    Attributes:
        number: From 1 on.
        held_out: (N,) True for its clips.
        folder: Of its own.
    """

    number: int
    held_out: NDArray[np.bool_]
    folder: Path


def cross_fitted_tables(
    rows: Sequence[Mapping[str, Any]],
    numbers: NDArray[np.int64],
    embed: Callable[[Fold], EmbeddingTable],
    *,
    folder: Path,
    resume: bool,
    is_main_process: bool = True,
) -> list[tuple[EmbeddingTable, EmbeddingTable]]:
    """Return each fold's references and held-out clips, for `ReferenceBank.fit(folds=...)`.

    A fold that is done is kept in its folder, and with `resume` it is not done again.

    Args:
        rows: What is known of N clips: `CLIP_FIELDS`.
        numbers: (N,) which fold holds each out, from `splits.fold_numbers`.
        embed: Makes an encoder without a fold's clips, and embeds all N clips by it, in order.
        folder: Holds a folder for each fold, `fold_1` and so on.
        resume: Take over the folds that are done.
        is_main_process: Whether this process writes what is done.

    Raises:
        ValueError: A fold that is done is of other clips, or its file is damaged.
    """
    tables = []
    folds = np.unique(numbers)
    for number, held in enumerate(folds, start=1):
        fold = Fold(number, numbers == held, folder / f"fold_{number}")
        path, digest = fold.folder / EMBEDDINGS_FILE, _digest(rows, fold.held_out)
        if resume and path.is_file():
            logger.info("Fold %d of %d is done.", number, len(folds))
            table = EmbeddingTable.from_clips(_read(path, digest), rows)
        else:
            logger.info("Fold %d of %d: an encoder without its clips.", number, len(folds))
            path.unlink(missing_ok=True)
            table = embed(fold)
            if is_main_process:
                _write(path, table.embedding, digest)
        tables.append((table.take(~fold.held_out), table.take(fold.held_out)))
    return tables


def _write(path: Path, embedding: NDArray[np.float32], digest: str) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    with whole_file(path) as partial:
        save_file({"embedding": embedding}, partial, metadata={"clips": digest})


def _read(path: Path, digest: str) -> NDArray[np.float32]:
    try:
        with safe_open(path, framework="numpy") as file:
            if file.metadata()["clips"] != digest:
                raise ValueError(
                    f"{path} is of other clips or folds. Give the same data_dir, seed and "
                    "num_folds, or train anew without --resume_from_checkpoint."
                )
            embedding: NDArray[np.float32] = file.get_tensor("embedding")
            return embedding
    except SafetensorError as error:
        raise ValueError(f"{path} is damaged ({error}). Delete it, and go on.") from error


def _digest(rows: Sequence[Mapping[str, Any]], held_out: NDArray[np.bool_]) -> str:
    """Return what tells the clips of a fold from others."""
    names = [(row["machine"], row["file_name"]) for row in rows]
    text = json.dumps([names, held_out.tolist()])
    return hashlib.sha256(text.encode()).hexdigest()

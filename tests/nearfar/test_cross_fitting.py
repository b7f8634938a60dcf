"""Cross-fitting: each fold is embedded without its clips, once, and taken over when it is done."""

from pathlib import Path

import numpy as np
import pytest

from nearfar.cross_fitting import EMBEDDINGS_FILE, Fold, cross_fitted_tables
from nearfar.embeddings import EmbeddingTable

ROWS = [
    {
        "file_name": f"{i}.wav",
        "machine": "2026/fan/00",
        "domain": "source",
        "condition": "normal",
        "attributes": "",
    }
    for i in range(7)
]
NUMBERS = np.array([0, 1, 2, 0, 1, 2, 0])


class Encoders:
    """Embed each clip as (its index, the number of the fold), and note which folds are asked."""

    def __init__(self, *, fails_at: int = 0) -> None:
        self.folds: list[Fold] = []
        self.fails_at = fails_at

    def __call__(self, fold: Fold) -> EmbeddingTable:
        if fold.number == self.fails_at:
            raise KeyboardInterrupt
        self.folds.append(fold)
        pairs = [[[[i, fold.number]]] for i in range(len(ROWS))]
        return EmbeddingTable.from_clips(np.array(pairs, dtype=np.float32), ROWS)


def tables(folder: Path, encoders: Encoders, **options):
    settings = {"folder": folder, "resume": True} | options
    return cross_fitted_tables(ROWS, NUMBERS, encoders, **settings)


def test_a_fold_holds_out_its_clips_and_refers_to_the_others(tmp_path: Path) -> None:
    encoders = Encoders()
    pairs = tables(tmp_path, encoders)
    assert [fold.held_out.tolist() for fold in encoders.folds] == [
        (number == NUMBERS).tolist() for number in range(3)
    ]
    for number, (references, held_out) in enumerate(pairs, start=1):
        indices = np.flatnonzero(number - 1 == NUMBERS)
        assert held_out.embedding[:, 0, 0, 0].tolist() == indices.tolist()
        assert held_out.file_names.tolist() == [f"{i}.wav" for i in indices]
        assert set(references.file_names) == {row["file_name"] for row in ROWS} - set(
            held_out.file_names
        )
        assert set(references.embedding[:, 0, 0, 1]) == {number}


def test_an_interrupted_cross_fitting_goes_on_with_the_fold_that_is_missing(
    tmp_path: Path,
) -> None:
    with pytest.raises(KeyboardInterrupt):
        tables(tmp_path, Encoders(fails_at=3))
    rest = Encoders()
    resumed = tables(tmp_path, rest)
    assert [fold.number for fold in rest.folds] == [3]
    anew = Encoders()
    whole = tables(tmp_path, anew, resume=False)
    assert [fold.number for fold in anew.folds] == [1, 2, 3]
    for pair, other in zip(resumed, whole, strict=True):
        for table, again in zip(pair, other, strict=True):
            assert np.array_equal(table.embedding, again.embedding)


def test_a_fold_of_other_clips_or_a_damaged_one_is_refused(tmp_path: Path) -> None:
    tables(tmp_path, Encoders())
    with pytest.raises(ValueError, match=r"fold_1/embeddings.* is of other clips or folds"):
        cross_fitted_tables(ROWS, np.roll(NUMBERS, 1), Encoders(), folder=tmp_path, resume=True)
    (tmp_path / "fold_2" / EMBEDDINGS_FILE).write_bytes(b"half")
    with pytest.raises(ValueError, match=r"fold_2/embeddings.* is damaged"):
        tables(tmp_path, Encoders())


def test_other_processes_write_nothing(tmp_path: Path) -> None:
    assert len(tables(tmp_path, Encoders(), is_main_process=False)) == 3
    assert not list(tmp_path.rglob("*.safetensors"))

"""The benchmark compares searches that find the same, measures each once, and says who is slow."""

from types import SimpleNamespace

import numpy as np
import pytest

from benchmarks import scoring
from nearfar.files import read_json

WORDS = "--references 60 300 --batch_sizes 1 4 --size 8 --neighbors 3 --repetitions 2"


class FlatIndex:
    """What the benchmark uses of faiss.IndexFlatL2."""

    def __init__(self, size: int) -> None:
        self.references = np.empty((0, size), dtype=np.float32)

    def add(self, references: np.ndarray) -> None:
        self.references = np.concatenate([self.references, references])

    def search(self, clips: np.ndarray, k: int) -> tuple[np.ndarray, np.ndarray]:
        squares = ((clips[:, None] - self.references) ** 2).sum(axis=2)
        found = squares.argsort(axis=1)[:, :k]
        return np.take_along_axis(squares, found, axis=1), found


def run(monkeypatch, tmp_path, words: str = WORDS) -> None:
    monkeypatch.setattr("sys.argv", ["scoring.py", "--output_dir", str(tmp_path), *words.split()])
    scoring.main()


def test_every_size_has_a_line_and_is_measured_once(monkeypatch, tmp_path, capsys) -> None:
    monkeypatch.setattr(scoring, "faiss", SimpleNamespace(IndexFlatL2=FlatIndex, __version__="0"))
    words = f"{WORDS} --peers sklearn faiss"
    run(monkeypatch, tmp_path, words)
    table = capsys.readouterr().out
    rows = [line.split() for line in table.splitlines()[2:]]
    assert [row[:2] for row in rows] == [["60", "1"], ["60", "4"], ["300", "1"], ["300", "4"]]
    for path in tmp_path.iterdir():
        times = read_json(path)["milliseconds"]
        assert set(times) == {"ours", "sklearn", "faiss"}
        assert min(times.values()) > 0
    monkeypatch.setattr(scoring, "measure", None)  # cannot be called
    run(monkeypatch, tmp_path, words)
    assert capsys.readouterr().out == table


def test_another_search_that_finds_others_stops_the_benchmark(monkeypatch, tmp_path) -> None:
    def shifted(references, k):
        search = scoring.sklearn_search(references, k)
        return lambda clips: ((search(clips)[0] + 1) % len(references), search(clips)[1])

    monkeypatch.setitem(scoring.PEERS, "sklearn", shifted)
    with pytest.raises(ValueError, match="sklearn finds other neighbours for 1 of 1 clips"):
        run(monkeypatch, tmp_path, f"{WORDS} --peers sklearn")


def test_faiss_is_asked_for_where_it_is_missing(monkeypatch, tmp_path) -> None:
    monkeypatch.setattr(scoring, "faiss", None)
    with pytest.raises(ImportError, match="pip install faiss-cpu"):
        run(monkeypatch, tmp_path, f"{WORDS} --peers faiss")
    with pytest.raises(ValueError, match=r"--peers \['annoy'\] are unknown"):
        run(monkeypatch, tmp_path, f"{WORDS} --peers annoy")

"""The benchmark compares searches that find the same, measures each once, and says who is slow."""

import pytest
import torch

from benchmarks import scoring
from nearfar.files import read_json

WORDS = "--references 60 300 --batch_sizes 1 4 --threads 1 --size 8 --neighbors 3 --repetitions 2"


def run(monkeypatch, tmp_path, words: str = WORDS) -> None:
    monkeypatch.setattr("sys.argv", ["scoring.py", "--output_dir", str(tmp_path), *words.split()])
    scoring.main()


def test_every_size_has_a_line_and_is_measured_once(monkeypatch, tmp_path, capsys) -> None:
    pytest.importorskip("faiss", reason="the extra large is not installed")
    words = f"{WORDS} --peers product_pass faiss_pass sklearn faiss"
    run(monkeypatch, tmp_path, words)
    table = capsys.readouterr().out
    rows = [line.split() for line in table.splitlines()[2:]]
    sizes = [["60", "1"], ["60", "4"], ["300", "1"], ["300", "4"]]
    assert [row[:3] for row in rows] == [[*size, "1"] for size in sizes]
    for path in tmp_path.iterdir():
        times = read_json(path)["milliseconds"]
        assert set(times) == {"ours", "product_pass", "faiss_pass", "sklearn", "faiss"}
        assert min(times.values()) > 0
    monkeypatch.setattr(scoring, "measure", None)  # cannot be called
    run(monkeypatch, tmp_path, words)
    assert capsys.readouterr().out == table


def test_beside_large_banks_ours_is_held_against_the_fastest_other() -> None:
    times = {"ours": 2.0, "product_pass": 1.0, "sklearn": 5.0, "faiss": 3.0}
    row = {"references": 10_000, "batch_size": 64, "threads": 1, "milliseconds": times}
    small = row | {"references": 9_999}
    alone = row | {"milliseconds": {"ours": 2.0, "faiss_pass": 1.0}}
    assert scoring.format_verdict([small, row, alone]) == [
        "10000 references, 64 clips, threads: 1: ours is 1.50 times as fast as the fastest other, "
        "faiss"
    ]


def test_all_libraries_compute_with_the_threads_asked_for(monkeypatch, tmp_path) -> None:
    seen = []
    monkeypatch.setattr(
        scoring, "measure", lambda *_, **__: seen.append(torch.get_num_threads()) or {"ours": 1.0}
    )
    before = torch.get_num_threads()
    words = "--references 60 --batch_sizes 1 --threads 1 3 --size 8 --peers sklearn"
    run(monkeypatch, tmp_path, words)
    assert seen == [1, 3]
    assert torch.get_num_threads() == before


def test_pyod_is_asked_up_to_its_limit_only(monkeypatch, tmp_path, capsys) -> None:
    pytest.importorskip("pyod", reason="PyOD is not installed")
    monkeypatch.setattr(scoring, "PYOD_REFERENCES", 60)
    words = "--references 60 300 --batch_sizes 4 --threads 1 --size 8 --neighbors 3 --peers pyod"
    run(monkeypatch, tmp_path, words)
    rows = [line.split() for line in capsys.readouterr().out.splitlines()[2:]]
    assert float(rows[0][5]) > 0
    assert rows[1][5:] == ["-", "-"]


def test_another_search_that_finds_others_stops_the_benchmark(monkeypatch, tmp_path) -> None:
    def shifted(references, k):
        search = scoring.sklearn_search(references, k)
        return search._replace(
            nearest=lambda clips: (
                (search.nearest(clips)[0] + 1) % len(references),
                search.nearest(clips)[1],
            )
        )

    monkeypatch.setitem(scoring.PEERS, "sklearn", shifted)
    with pytest.raises(ValueError, match="sklearn finds other neighbours for 1 of 1 clips"):
        run(monkeypatch, tmp_path, f"{WORDS} --peers sklearn")


def test_faiss_is_asked_for_where_it_is_missing(monkeypatch, tmp_path) -> None:
    monkeypatch.setattr(scoring, "faiss", None)
    with pytest.raises(ImportError, match="pip install faiss-cpu"):
        run(monkeypatch, tmp_path, f"{WORDS} --peers faiss")
    with pytest.raises(ValueError, match=r"--peers \['annoy'\] are unknown"):
        run(monkeypatch, tmp_path, f"{WORDS} --peers annoy")

"""The search is exact, whatever the float32 pass rules out and however small its blocks are."""

import pytest
import torch

from modeling import neighbor_search
from modeling.neighbor_search import ReferenceIndex, prepared

METRICS = ("cosine", "euclidean", "unit_euclidean")


def noise(*shape: int, seed: int) -> torch.Tensor:
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed))


def all_distances(query, references, metric) -> torch.Tensor:
    """Return (M, N) float64 mean distances over views and bands, clip by clip."""
    query, references = query.double(), references.double()
    if metric != "euclidean":
        query = query / query.norm(dim=-1, keepdim=True)
        references = references / references.norm(dim=-1, keepdim=True)
    rows = []
    for clip in query:
        difference = (references - clip).square().sum(dim=-1)
        away = difference / 2 if metric == "cosine" else difference.sqrt()
        rows.append(away.flatten(1).mean(dim=1))
    return torch.stack(rows)


@pytest.fixture
def small_blocks(monkeypatch) -> None:
    monkeypatch.setattr(neighbor_search, "SEARCH_BLOCK", 3)
    monkeypatch.setattr(neighbor_search, "REFERENCE_BLOCK", 64)
    monkeypatch.setattr(neighbor_search, "MEASURED_BLOCK", 1000)


@pytest.mark.usefixtures("small_blocks")
@pytest.mark.parametrize("metric", METRICS)
@pytest.mark.parametrize("parts", [(1, 1), (2, 3)])
def test_the_nearest_are_those_of_all_distances(metric, parts) -> None:
    references = prepared(noise(300, *parts, 12, seed=0), metric)
    query = noise(8, *parts, 12, seed=1)
    due = all_distances(query, references, metric).sort(dim=1)
    for k in (1, 5, 300, 999):
        found, distance = ReferenceIndex(references, metric).nearest(query, k)
        assert torch.equal(found, due.indices[:, :k])
        torch.testing.assert_close(distance, due.values[:, :k], rtol=1e-12, atol=1e-14)


@pytest.mark.parametrize("scale", [1e-24, 1e24])
def test_lengths_whose_squares_float32_cannot_hold_are_searched_in_float64(scale) -> None:
    references, query = (scale * noise(n, 1, 1, 12, seed=n) for n in (300, 8))
    assert float(references[0].square().sum()) in (0.0, float("inf"))
    due = all_distances(query, references, "euclidean").sort(dim=1)
    found, distance = ReferenceIndex(references, "euclidean").nearest(query, 3)
    assert torch.equal(found, due.indices[:, :3])
    torch.testing.assert_close(distance, due.values[:, :3], rtol=1e-12, atol=0.0)


@pytest.mark.usefixtures("small_blocks")
@pytest.mark.parametrize("metric", METRICS)
def test_neighbours_closer_together_than_float32_tells_are_told_apart(metric, monkeypatch) -> None:
    """A thousand references within 1e-7 of each other, far from the origin."""
    monkeypatch.setattr(neighbor_search, "SPARE", 2)
    center = 10 * noise(1, 1, 1, 32, seed=0)
    references = prepared(center + 2e-6 * noise(500, 1, 1, 32, seed=1), metric)
    query = center + 1e-3 * noise(4, 1, 1, 32, seed=2)
    due = all_distances(query, references, metric).sort(dim=1)
    searched = []
    whole = ReferenceIndex._search

    def counting(index, query, *others):
        searched.append(len(query))
        return whole(index, query, *others)

    monkeypatch.setattr(ReferenceIndex, "_search", counting)
    _, distance = ReferenceIndex(references, metric).nearest(query, 3)
    torch.testing.assert_close(distance, due.values[:, :3], rtol=1e-12, atol=1e-14)
    assert sum(searched) == 4  # all were in doubt
    searched.clear()
    others = prepared(10 * noise(500, 1, 1, 32, seed=1), metric)
    ReferenceIndex(others, metric).nearest(query, 3)
    assert not searched  # none was


@pytest.mark.usefixtures("small_blocks")
@pytest.mark.parametrize("metric", METRICS)
def test_hidden_references_are_never_found(metric) -> None:
    references = prepared(noise(200, 1, 1, 6, seed=0), metric)
    query = references[:7] * 1.01

    def hidden(rows, columns):
        return (rows[:, None] + columns) % 2 == 0

    found, distance = ReferenceIndex(references, metric).nearest(query, 4, hidden=hidden)
    away = all_distances(query, references, metric)
    away[(torch.arange(7)[:, None] + torch.arange(200)) % 2 == 0] = torch.inf
    torch.testing.assert_close(distance, away.sort(dim=1).values[:, :4], rtol=1e-12, atol=1e-14)
    assert ((torch.arange(7)[:, None] + found) % 2 == 1).all()

    def all_hidden(rows, columns):
        return torch.ones(len(rows), len(columns), dtype=torch.bool)

    _, distance = ReferenceIndex(references, metric).nearest(query, 4, hidden=all_hidden)
    assert distance.isinf().all()


@pytest.mark.usefixtures("small_blocks")
def test_the_smallest_values_are_those_of_all_references() -> None:
    references, query = noise(200, 1, 2, 6, seed=0), noise(5, 1, 2, 6, seed=1)
    weights = noise(200, seed=2).double().exp()
    values = ReferenceIndex(references, "euclidean").smallest(
        query, 3, value=lambda distance, columns: distance * weights[columns]
    )
    due = (all_distances(query, references, "euclidean") * weights).sort(dim=1).values[:, :3]
    torch.testing.assert_close(values, due, rtol=1e-12, atol=1e-14)


def test_memory_does_not_grow_with_the_bank(monkeypatch) -> None:
    """No step sees more numbers at a time than the blocks allow, whatever the bank's size."""
    largest = 0
    merged = neighbor_search._merged

    def watching(found, best, values, columns, k):
        nonlocal largest
        largest = max(largest, values.numel(), best.numel())
        return merged(found, best, values, columns, k)

    monkeypatch.setattr(neighbor_search, "_merged", watching)
    monkeypatch.setattr(neighbor_search, "SEARCH_BLOCK", 16)
    monkeypatch.setattr(neighbor_search, "REFERENCE_BLOCK", 128)
    index = ReferenceIndex(noise(5000, 1, 1, 4, seed=1), "euclidean")
    index.nearest(noise(100, 1, 1, 4, seed=0), 3)
    assert largest == 16 * 128


@pytest.fixture
def small_banks_take_faiss(monkeypatch) -> list[int]:
    """Return the number of clips of each call of FAISS, also for small banks."""
    pytest.importorskip("faiss", reason="the extra large is not installed")
    calls = []
    found = ReferenceIndex._faiss_keys

    def counting(index, flat, few):
        calls.append(len(flat))
        return found(index, flat, few)

    monkeypatch.setattr(ReferenceIndex, "_faiss_keys", counting)
    monkeypatch.setattr(neighbor_search, "FAISS_REFERENCES", 100)
    return calls


def with_duplicates(*shape: int) -> torch.Tensor:
    """Return 300 references, of which 3 are the same and 40 others are, too."""
    references = noise(300, *shape, seed=0)
    references[[7, 150, 299]] = references[3].clone()
    references[40:80] = references[100].clone()
    return references


@pytest.mark.parametrize("metric", METRICS)
@pytest.mark.parametrize("parts", [(1, 1), (2, 3)])
@pytest.mark.parametrize("num_clips", [1, 30])  # FAISS computes many clips in another way
def test_faiss_finds_the_same_neighbours_ties_and_duplicates_included(
    metric, parts, num_clips, small_banks_take_faiss
) -> None:
    references = prepared(with_duplicates(*parts, 12), metric)
    query = 1.5 * references[torch.arange(num_clips) * 7 % 300] + 1e-3 * noise(
        num_clips, *parts, 12, seed=1
    )
    query[0] = references[150]
    for k in (1, 5, 45):
        found, distance = ReferenceIndex(references, metric, backend="torch").nearest(query, k)
        others, away = ReferenceIndex(references, metric, backend="faiss").nearest(query, k)
        assert torch.equal(others, found)
        assert torch.equal(away, distance)
    # What is measured in float64 throughout: means of Euclidean distances over parts.
    assert bool(small_banks_take_faiss) == (metric == "cosine" or parts == (1, 1))


@pytest.mark.parametrize("metric", METRICS)
def test_equal_references_are_found_in_their_order(metric) -> None:
    references = prepared(with_duplicates(1, 1, 12), metric)
    found, _ = ReferenceIndex(references, metric).nearest(references[[7, 3]], 5)
    assert found[:, :4].tolist() == [[3, 7, 150, 299]] * 2


def test_faiss_in_doubt_is_searched_again_in_float64(small_banks_take_faiss) -> None:
    center = 10 * noise(1, 1, 1, 32, seed=0)
    query = center + 1e-3 * noise(4, 1, 1, 32, seed=2)
    for metric in METRICS:
        references = prepared(center + 2e-6 * noise(500, 1, 1, 32, seed=1), metric)
        due = all_distances(query, references, metric).sort(dim=1).values[:, :3]
        _, distance = ReferenceIndex(references, metric, backend="faiss").nearest(query, 3)
        torch.testing.assert_close(distance, due, rtol=1e-12, atol=1e-14)


def test_faiss_is_taken_only_where_it_was_measured_to_be_faster(
    small_banks_take_faiss, monkeypatch
) -> None:
    references, query = noise(200, 1, 1, 6, seed=0), noise(2, 1, 1, 6, seed=1)
    threads = 1
    monkeypatch.setattr(torch, "get_num_threads", lambda: threads)

    def calls(clips: int, bank: torch.Tensor = references, **options) -> int:
        small_banks_take_faiss.clear()
        ReferenceIndex(bank, "euclidean", **options).nearest(query[:clips], 3)
        return len(small_banks_take_faiss)

    assert calls(1) == 1
    assert calls(2) == 0  # several clips
    assert calls(1, references[:99]) == 0  # a small bank
    assert calls(1, backend="torch") == 0
    assert calls(2, backend="faiss") == 1
    strided = noise(200, 2, 1, 6, seed=0)[:, :1]
    assert calls(1, strided) == 0  # it would have to be copied
    threads = 2
    assert calls(1) == 0
    assert calls(1, backend="faiss") == 1
    ReferenceIndex(references, "euclidean").nearest(
        query[:1], 3, hidden=lambda rows, columns: torch.zeros(len(rows), len(columns)).bool()
    )
    assert small_banks_take_faiss == [1]  # leave-one-out is the product's


def test_without_faiss_every_bank_is_searched_and_asking_for_it_names_the_extra(
    monkeypatch,
) -> None:
    monkeypatch.setattr(neighbor_search, "faiss_module", lambda: None)
    monkeypatch.setattr(torch, "get_num_threads", lambda: 1)
    monkeypatch.setattr(neighbor_search, "FAISS_REFERENCES", 0)
    references = noise(200, 1, 1, 6, seed=0)
    found, _ = ReferenceIndex(references, "euclidean").nearest(references[:1], 1)
    assert found.tolist() == [[0]]
    with pytest.raises(ImportError, match=r"pip install 'nearfar\[large\]'"):
        ReferenceIndex(references, "euclidean", backend="faiss")

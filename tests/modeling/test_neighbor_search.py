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

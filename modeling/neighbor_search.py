"""Exact search for the nearest references, in blocks whose memory does not grow with the bank.

Most references are ruled out in float32, by one matrix product; what is left is measured in
float64. The result is that of float64 throughout: a query for which the rounding of float32 could
have ruled out a neighbour is searched again in float64.
"""

import math
from collections.abc import Callable
from typing import Literal

import torch
import torch.nn.functional as F
from torch import Tensor

# "cosine" is 1 - cos in [0, 2]; "euclidean" takes lengths into account; "unit_euclidean" is the
# Euclidean distance of vectors of length 1, the root of twice the cosine distance.
Metric = Literal["cosine", "euclidean", "unit_euclidean"]

# Distances are taken between so many queries and references at a time: 16 MiB of float64.
SEARCH_BLOCK = 256
REFERENCE_BLOCK = 8192
# References kept beyond k by the float32 pass, and how many numbers of them are read at a time.
SPARE = 16
MEASURED_BLOCK = 2**22

# (rows of the queries, columns of the references) -> (M, B) bool, True where a pair is not compared
Hidden = Callable[[Tensor, Tensor], Tensor]


def prepared(embedding: Tensor, metric: Metric) -> Tensor:
    """Return clips (N, views, bands, size) as a bank keeps them: of length 1 for two metrics."""
    if metric == "euclidean":
        return embedding
    kept = torch.empty_like(embedding)
    for start in range(0, len(embedding), REFERENCE_BLOCK):
        block = slice(start, start + REFERENCE_BLOCK)
        kept[block] = F.normalize(embedding[block].double(), dim=-1).float()
    return kept


def nearest(
    query: Tensor,
    references: Tensor,
    k: int,
    *,
    metric: Metric,
    hidden: Hidden | None = None,
) -> tuple[Tensor, Tensor]:
    """Return the k nearest references of each clip, nearest first.

    Args:
        query: (M, views, bands, size) float32.
        references: (N, views, bands, size) float32, `prepared`.
        k: How many; all references if there are fewer.
        metric: Averaged over views and bands.
        hidden: Says which references a query must not see; their distance is infinite.

    Returns:
        Indices (M, k) int64 and distances (M, k) float64.
    """
    k = min(k, len(references))
    found, distances = [torch.empty(0, k, dtype=torch.int64)], [query.new_empty(0, k).double()]
    parts = query.shape[1] * query.shape[2]
    few = k + SPARE
    ruled_out = 4 * few <= len(references) and (parts == 1 or metric == "cosine")
    for rows in torch.arange(len(query)).split(SEARCH_BLOCK):
        block = _as_measured(query[rows], metric)
        if not ruled_out:
            indices, distance = _search(block, references, k, metric, rows, hidden)
        else:
            candidates, bound = _candidates(block, references, few, metric, rows, hidden)
            indices, distance = _measure(block, references, candidates, k, metric, rows, hidden)
            if len(doubtful := (distance[:, -1] > bound).nonzero()[:, 0]):
                indices[doubtful], distance[doubtful] = _search(
                    block[doubtful], references, k, metric, rows[doubtful], hidden
                )
        found.append(indices)
        distances.append(distance)
    return torch.cat(found), torch.cat(distances)


def smallest(
    query: Tensor,
    references: Tensor,
    k: int,
    *,
    metric: Metric,
    value: Callable[[Tensor, slice], Tensor],
    hidden: Hidden | None = None,
) -> Tensor:
    """Return the k smallest values of one block of clips, (M, k) float64, smallest first.

    Args:
        query: (M, views, bands, size) float32.
        references: (N, views, bands, size) float32, `prepared`.
        k: How many; all if there are fewer references.
        metric: Of the distances.
        value: Distances (M, B) float64 and the references they go to -> values (M, B).
        hidden: As for `nearest`; a hidden reference's value is infinite.
    """
    rows = torch.arange(len(query))
    block = _as_measured(query, metric)
    k = min(k, len(references))
    return _search(block, references, k, metric, rows, hidden, value)[1]


def _as_measured(clips: Tensor, metric: Metric) -> Tensor:
    """Return clips in float64, of length 1 where the metric has it so."""
    clips = clips.double()
    return clips if metric == "euclidean" else F.normalize(clips, dim=-1)


def _search(
    query: Tensor,
    references: Tensor,
    k: int,
    metric: Metric,
    rows: Tensor,
    hidden: Hidden | None,
    value: Callable[[Tensor, slice], Tensor] | None = None,
) -> tuple[Tensor, Tensor]:
    """Return indices and values, (M, k) each, smallest first, all in float64."""
    found = torch.empty(len(query), 0, dtype=torch.int64)
    best = query.new_empty(len(query), 0)
    for start in range(0, len(references), REFERENCE_BLOCK):
        block = slice(start, start + REFERENCE_BLOCK)
        values = _distances(query, _as_measured(references[block], metric), metric)
        columns = torch.arange(start, start + values.shape[1])
        if value is not None:
            values = value(values, block)
        if hidden is not None:
            values = values.masked_fill(hidden(rows, columns), torch.inf)
        found, best = _merged(found, best, values, columns, k)
    return found, best


def _candidates(
    query: Tensor,
    references: Tensor,
    few: int,
    metric: Metric,
    rows: Tensor,
    hidden: Hidden | None,
) -> tuple[Tensor, Tensor]:
    """Return the nearest by float32, (M, few), and the distance (M,) that no other lies below.

    The order of distances is that of |y|^2 / 2 - q.y, or of -q.y for unit vectors. A product of n
    terms is off by more than 4 sqrt(n) 2^-24 |q||y| only where rounding errors conspire (Higham
    and Mary, 2019).
    """
    flat, kept = query.float().flatten(1), references.flatten(1)
    found = torch.empty(len(query), 0, dtype=torch.int64)
    best = flat.new_empty(len(query), 0)
    longest = flat.new_zeros(())
    for start in range(0, len(kept), REFERENCE_BLOCK):
        block = kept[start : start + REFERENCE_BLOCK]
        columns = torch.arange(start, start + len(block))
        keys = torch.mm(flat, block.T).neg_()
        if metric == "euclidean":
            squares = block.square().sum(dim=1)
            keys += 0.5 * squares
            longest = torch.maximum(longest, squares.amax().sqrt())
        if hidden is not None:
            keys.masked_fill_(hidden(rows, columns), torch.inf)
        found, best = _merged(found, best, keys, columns, few)
    parts, last = query.shape[1] * query.shape[2], best[:, -1].double()
    lengths = query.flatten(1).norm(dim=1)  # (M,)
    reach = lengths * parts**0.5 if metric != "euclidean" else longest * (lengths + longest)
    last = last - 4 * math.sqrt(flat.shape[1]) * 2**-24 * reach
    if metric == "euclidean":
        return found, (2 * last + lengths.square()).clamp_min(0).sqrt()
    cosine_distance = (1 + last / parts).clamp_min(0)
    return found, cosine_distance if metric == "cosine" else (2 * cosine_distance).sqrt()


def _measure(
    query: Tensor,
    references: Tensor,
    candidates: Tensor,
    k: int,
    metric: Metric,
    rows: Tensor,
    hidden: Hidden | None,
) -> tuple[Tensor, Tensor]:
    """Return the k nearest of each clip's candidates, (M, few), by their distance in float64."""
    at_a_time = max(1, MEASURED_BLOCK // (candidates.shape[1] * references[0].numel()))
    distances = [
        _distances(clips[:, None], _as_measured(references[chosen], metric), metric)[:, 0]
        for clips, chosen in zip(query.split(at_a_time), candidates.split(at_a_time), strict=True)
    ]
    distance = torch.cat(distances)  # (M, few)
    if hidden is not None:
        out = [hidden(row[None], chosen)[0] for row, chosen in zip(rows, candidates, strict=True)]
        distance = distance.masked_fill(torch.stack(out), torch.inf)
    distance, order = distance.topk(k, dim=1, largest=False)
    return candidates.gather(1, order), distance


def _distances(query: Tensor, references: Tensor, metric: Metric) -> Tensor:
    """Return mean distances over views and bands, in float64.

    Args:
        query: (..., M, views, bands, size).
        references: (..., N, views, bands, size).
        metric: Both are as it measures them.

    Returns:
        (..., M, N).
    """
    query = query.flatten(-3, -2).movedim(-2, 0)  # (parts, ..., M, size)
    references = references.flatten(-3, -2).movedim(-2, 0)
    total = torch.zeros(())
    for clip, reference in zip(query, references, strict=True):
        if metric == "cosine":
            distance = (1 - clip @ reference.mT).clamp(0, 2)
        else:
            # The plain sum of squares: a product would lose the small distances.
            distance = torch.cdist(clip, reference, compute_mode="donot_use_mm_for_euclid_dist")
        total = total + distance
    return total / len(query)


def _merged(
    found: Tensor, best: Tensor, values: Tensor, columns: Tensor, k: int
) -> tuple[Tensor, Tensor]:
    """Return the k smallest of those found before and of a block's, smallest first."""
    values, order = values.topk(min(k, values.shape[1]), dim=1, largest=False)
    best = torch.cat([best, values], dim=1)
    found = torch.cat([found, columns[order]], dim=1)
    if best.shape[1] > values.shape[1]:
        best, order = best.topk(min(k, best.shape[1]), dim=1, largest=False)
        found = found.gather(1, order)
    return found, best


__all__ = ["REFERENCE_BLOCK", "Hidden", "Metric", "nearest", "prepared", "smallest"]

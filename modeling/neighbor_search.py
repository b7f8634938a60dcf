"""Exact search for the nearest references, in blocks whose memory does not grow with the bank.

Most references are ruled out in float32, by one matrix product or by FAISS; what is left is
measured in float64. The result is that of float64 throughout: a query for which the rounding of
float32 could have ruled out a neighbour is searched again in float64.
"""

import math
from collections.abc import Callable
from functools import cache
from typing import Any, Literal

import torch
import torch.nn.functional as F
from torch import Tensor

# "cosine" is 1 - cos in [0, 2]; "euclidean" takes lengths into account; "unit_euclidean" is the
# Euclidean distance of vectors of length 1, the root of twice the cosine distance.
Metric = Literal["cosine", "euclidean", "unit_euclidean"]
# What rules references out in float32: a matrix product, FAISS, or whichever is faster here.
Backend = Literal["fastest", "torch", "faiss"]

# Distances are taken between so many queries and references at a time: 16 MiB of float64.
SEARCH_BLOCK = 256
REFERENCE_BLOCK = 8192
# References kept beyond k by the float32 pass, and how many numbers of them are read at a time.
SPARE = 8
MEASURED_BLOCK = 2**22

# FAISS was measured to be faster for so many clips at once, from so many references on, where one
# thread computes: it does not share one clip's search among threads, and a product does
# (benchmarks/scoring.py). For more clips at once the product is several times as fast.
FAISS_CLIPS = 1
FAISS_REFERENCES = 10_000
FAISS_THREADS = 1

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


class ReferenceIndex:
    """References that are searched, by one metric averaged over views and bands.

    Args:
        references: (N, views, bands, size) float32, `prepared`. They are not copied.
        metric: Of the distances.
        backend: What rules references out; the neighbours are the same. "fastest" takes FAISS only
            where it is installed and was measured to be faster. No bank needs FAISS.

    Raises:
        ImportError: FAISS is asked for, and not installed.
    """

    def __init__(self, references: Tensor, metric: Metric, *, backend: Backend = "fastest") -> None:
        if backend == "faiss" and faiss_module() is None:
            raise ImportError("backend='faiss' needs FAISS: pip install 'nearfar[large]'.")
        self.references = references
        self.metric: Metric = metric
        self.backend: Backend = backend
        self._half_squares: Tensor | None = None

    def __len__(self) -> int:
        return len(self.references)

    def nearest(
        self, query: Tensor, k: int, *, hidden: Hidden | None = None
    ) -> tuple[Tensor, Tensor]:
        """Return the k nearest references of each clip, nearest first.

        Of references that are equally far, those that came first are found, unless more of them tie
        than the float32 pass keeps.

        Args:
            query: (M, views, bands, size).
            k: How many; all references if there are fewer.
            hidden: Says which references a query must not see; their distance is infinite.

        Returns:
            Indices (M, k) int64 and distances (M, k) float64.
        """
        k = min(k, len(self))
        found, distances = [torch.empty(0, k, dtype=torch.int64)], [torch.empty(0, k).double()]
        parts = query.shape[1] * query.shape[2]
        few = k + SPARE
        ruled_out = 4 * few <= len(self) and (parts == 1 or self.metric == "cosine")
        for rows in torch.arange(len(query)).split(SEARCH_BLOCK):
            block = _as_measured(query[rows], self.metric)
            if not ruled_out:
                indices, distance = self._search(block, k, rows, hidden)
            else:
                candidates, bound = self._candidates(block, few, rows, hidden)
                indices, distance = self._measure(block, candidates, k, rows, hidden)
                # Not `>`: where float32 overflowed, the bound is no number.
                if len(doubtful := (~(distance[:, -1] <= bound)).nonzero()[:, 0]):
                    indices[doubtful], distance[doubtful] = self._search(
                        block[doubtful], k, rows[doubtful], hidden
                    )
            found.append(indices)
            distances.append(distance)
        return torch.cat(found), torch.cat(distances)

    def smallest(
        self,
        query: Tensor,
        k: int,
        *,
        value: Callable[[Tensor, slice], Tensor],
        hidden: Hidden | None = None,
    ) -> Tensor:
        """Return the k smallest values of one block of clips, (M, k) float64, smallest first.

        Args:
            query: (M, views, bands, size).
            k: How many; all if there are fewer references.
            value: Distances (M, B) float64 and the references they go to -> values (M, B).
            hidden: As for `nearest`; a hidden reference's value is infinite.
        """
        block = _as_measured(query, self.metric)
        return self._search(block, min(k, len(self)), torch.arange(len(query)), hidden, value)[1]

    def _search(
        self,
        query: Tensor,
        k: int,
        rows: Tensor,
        hidden: Hidden | None,
        value: Callable[[Tensor, slice], Tensor] | None = None,
    ) -> tuple[Tensor, Tensor]:
        """Return indices and values, (M, k) each, smallest first, all in float64."""
        found = torch.empty(len(query), 0, dtype=torch.int64)
        best = query.new_empty(len(query), 0)
        for start in range(0, len(self), REFERENCE_BLOCK):
            block = slice(start, start + REFERENCE_BLOCK)
            references = _as_measured(self.references[block], self.metric)
            values = _distances(query, references, self.metric)
            columns = torch.arange(start, start + values.shape[1])
            if value is not None:
                values = value(values, block)
            if hidden is not None:
                values = values.masked_fill(hidden(rows, columns), torch.inf)
            found, best = _merged(found, best, values, columns, k)
        return found, best

    def _candidates(
        self, query: Tensor, few: int, rows: Tensor, hidden: Hidden | None
    ) -> tuple[Tensor, Tensor]:
        """Return the nearest by float32, (M, few), and the distance (M,) no other lies below.

        The order of distances is that of |y|^2 / 2 - q.y, or of -q.y for unit vectors. A product of
        n terms is off by more than 4 sqrt(n) 2^-24 |q||y| only where rounding errors conspire
        (Higham and Mary, 2019); the squared lengths that FAISS adds are off likewise.
        """
        flat = query.float().flatten(1)
        if hidden is None and self._takes_faiss(len(flat)):
            found, best = self._faiss_keys(flat, few)
        else:
            found, best = self._product_keys(flat, few, rows, hidden)
        parts, last = query.shape[1] * query.shape[2], best[:, -1].double()
        lengths = query.flatten(1).norm(dim=1)  # (M,)
        rounding = 4 * math.sqrt(flat.shape[1]) * 2**-24
        if self.metric == "euclidean":
            longest = (2 * self._halves().amax()).sqrt()
            underflow = 2 * flat.shape[1] * torch.finfo(torch.float32).tiny
            last = last - rounding * (lengths + longest).square() - underflow
            return found, (2 * last + lengths.square()).clamp_min(0).sqrt()
        cosine_distance = (1 + (last - rounding * lengths * parts**0.5) / parts).clamp_min(0)
        bound = cosine_distance if self.metric == "cosine" else (2 * cosine_distance).sqrt()
        return found, bound

    def _product_keys(
        self, flat: Tensor, few: int, rows: Tensor, hidden: Hidden | None
    ) -> tuple[Tensor, Tensor]:
        """Return the smallest keys of `_candidates`, (M, few), and whose they are."""
        kept = self.references.flatten(1)
        found = torch.empty(len(flat), 0, dtype=torch.int64)
        best = flat.new_empty(len(flat), 0)
        for start in range(0, len(kept), REFERENCE_BLOCK):
            block = kept[start : start + REFERENCE_BLOCK]
            columns = torch.arange(start, start + len(block))
            if self.metric == "euclidean":
                keys = torch.addmm(self._halves()[columns], flat, block.T, alpha=-1)
            else:
                keys = torch.mm(flat, block.T).neg_()
            if hidden is not None:
                keys.masked_fill_(hidden(rows, columns), torch.inf)
            found, best = _merged(found, best, keys, columns, few)
        return found, best

    def _faiss_keys(self, flat: Tensor, few: int) -> tuple[Tensor, Tensor]:
        """Return what `_product_keys` does, within rounding, by FAISS."""
        euclidean = self.metric == "euclidean"
        faiss = faiss_module()
        measured, found = faiss.knn(
            flat.numpy(),
            self.references.flatten(1).numpy(),
            few,
            metric=faiss.METRIC_L2 if euclidean else faiss.METRIC_INNER_PRODUCT,
        )
        keys = torch.from_numpy(measured)
        if euclidean:  # |q - y|^2 = 2 key + |q|^2
            return torch.from_numpy(found), (keys - flat.square().sum(dim=1, keepdim=True)) / 2
        return torch.from_numpy(found), -keys

    def _takes_faiss(self, num_clips: int) -> bool:
        """Return whether FAISS rules references out for so many clips at once.

        It reads the references where they are, which must then lie one behind the other: a copy of
        a large bank would cost more than FAISS gains.
        """
        if self.backend == "torch" or not self.references.is_contiguous():
            return False
        return self.backend == "faiss" or (
            num_clips <= FAISS_CLIPS
            and len(self) >= FAISS_REFERENCES
            and torch.get_num_threads() <= FAISS_THREADS
            and faiss_module() is not None
        )

    def _measure(
        self, query: Tensor, candidates: Tensor, k: int, rows: Tensor, hidden: Hidden | None
    ) -> tuple[Tensor, Tensor]:
        """Return the k nearest of each clip's candidates, (M, few), by distances in float64.

        A pair's distance does not depend on what else is measured, so that equal references are
        equally far, and are found in their order.
        """
        candidates = candidates.sort(dim=1).values
        parts = query.shape[1] * query.shape[2]
        at_a_time = max(1, MEASURED_BLOCK // (candidates.shape[1] * self.references[0].numel()))
        distances = []
        for clips, chosen in zip(query.split(at_a_time), candidates.split(at_a_time), strict=True):
            references = _as_measured(self.references[chosen], self.metric).flatten(2)
            clip = clips[:, None].flatten(2)
            if self.metric == "cosine":
                distances.append(1 - (clip * references).sum(dim=2) / parts)
            else:
                distances.append(_euclidean(clip, references)[:, 0])
        distance = torch.cat(distances).clamp_min(0)  # (M, few)
        if hidden is not None:
            pairs = zip(rows, candidates, strict=True)
            out = torch.cat([hidden(row[None], chosen) for row, chosen in pairs])
            distance = distance.masked_fill(out, torch.inf)
        distance, order = distance.sort(dim=1, stable=True)
        return candidates.gather(1, order[:, :k]), distance[:, :k]

    def _halves(self) -> Tensor:
        """Return half the squared length of each reference, (N,) float32."""
        if self._half_squares is None:
            blocks = self.references.flatten(1).split(REFERENCE_BLOCK)
            self._half_squares = torch.cat([block.square().sum(dim=1) / 2 for block in blocks])
        return self._half_squares


@cache
def faiss_module() -> Any:  # noqa: ANN401 - a module, of an extra
    """Return FAISS, or None where it is not installed; loading it takes a quarter of a second."""
    try:
        import faiss
    except ImportError:  # the matrix product finds the same
        return None
    return faiss


def _as_measured(clips: Tensor, metric: Metric) -> Tensor:
    """Return clips in float64, of length 1 where the metric has it so."""
    clips = clips.double()
    return clips if metric == "euclidean" else F.normalize(clips, dim=-1)


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
            distance = _euclidean(clip, reference)
        total = total + distance
    return total / len(query)


def _euclidean(clips: Tensor, references: Tensor) -> Tensor:
    """Return distances (..., M, N) of (..., M, size) and (..., N, size).

    By the plain sum of squares: a product would lose the small distances.
    """
    return torch.cdist(clips, references, compute_mode="donot_use_mm_for_euclid_dist")


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


__all__ = ["REFERENCE_BLOCK", "Backend", "Hidden", "Metric", "ReferenceIndex", "prepared"]

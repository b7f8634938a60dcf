"""How dense normal clips lie around each reference, and distances rescaled by that.

A distance to a reference in a dense region says more than the same distance in a sparse one, and
source and target domain differ most in their density.
"""

from typing import Literal, NamedTuple

import torch
from torch import Tensor

from .neighbor_search import Metric, ReferenceIndex

# What becomes of a distance D to a reference with density b:
# local_density               D / b                  (Wilkinghoff et al., ICASSP 2025)
# local_density_difference    D - b
# log_local_density           log D - log b
# varmin                      D - alpha b            (Matsumoto et al., DCASE workshop 2025)
# log_varmin                  log D - alpha log b
Normalization = Literal[
    "none",
    "local_density",
    "local_density_difference",
    "log_local_density",
    "varmin",
    "log_varmin",
]

# Added to distances and densities before a ratio or a logarithm; duplicates have density 0.
EPSILON = 1e-8
# From so many references on, the neighbours of a density are looked for among as many of them.
DENSITY_SAMPLE = 20_000


class NeighborLists(NamedTuple):
    """Each member's nearest others: distances (n, L) float64, infinite where none, and indices."""

    distances: Tensor
    indices: Tensor


def related(clips: Tensor, others: Tensor) -> Tensor:
    """Return (M, n) bool: whether two members are made of a common clip.

    Args:
        clips: (M, 2) positions of the clips that a member is made of.
        others: (n, 2) likewise, or (M, n, 2) with other members for each of the first.
    """
    if others.ndim == 2:
        others = others[None]
    pairs = clips[:, None, :, None] == others[:, :, None, :]  # (M, n, 2, 2)
    return pairs.flatten(2).any(dim=2)


def neighbor_lists(members: Tensor, clips: Tensor, length: int, *, metric: Metric) -> NeighborLists:
    """Return each member's nearest others, with none that is made of a clip of its own.

    A bank of more than `DENSITY_SAMPLE` members is searched among so many of them, evenly spaced:
    all densities are then too large by about the same factor.

    Args:
        members: (n, views, bands, size), `prepared`.
        clips: (n, 2), see `related`.
        length: L of the lists, at most; a domain may have fewer others.
        metric: Of the distances, averaged over views and bands.
    """
    count = len(members)
    sample = torch.arange(count)
    if count > DENSITY_SAMPLE:
        sample = torch.linspace(0, count - 1, DENSITY_SAMPLE).round().long()

    def hidden(rows: Tensor, columns: Tensor) -> Tensor:
        return related(clips[rows], clips[sample[columns]])

    searched = members if len(sample) == count else members[sample]
    indices, distances = ReferenceIndex(searched, metric).nearest(members, length, hidden=hidden)
    return NeighborLists(distances, sample[indices])


def densities(
    lists: NeighborLists, k: int, *, total: bool = False, removed: Tensor | None = None
) -> Tensor:
    """Return the mean distance of each member to its k nearest others, (1, n) or (M, n) float64.

    Args:
        lists: Of all members; k + 1 long, the result is exact while one of a list is removed.
        k: All there are, if there are fewer.
        total: Take the sum instead of the mean.
        removed: (M, n) bool: which members are not there, for each of M results.

    Returns:
        NaN where a member has no other.
    """
    there = _there(lists, removed)
    counted = there & (there.cumsum(dim=2) <= k)
    sums = lists.distances.where(counted, 0.0).sum(dim=2)
    number = counted.sum(dim=2)
    return torch.where(number > 0, sums if total else sums / number, torch.nan)


def varmin_slopes(
    lists: NeighborLists,
    density: Tensor,
    recorded: Tensor,
    *,
    log: bool = False,
    removed: Tensor | None = None,
) -> Tensor:
    """Return alpha, (1,) or (M,) float64: how much of a distance the density explains.

    Over the recorded clips, u is the distance of a clip to its nearest other and v that one's
    density; alpha = Cov(u, v) / Var(v) makes u - alpha v vary least. It is 0 where v does not vary.

    Args:
        lists: Of all members.
        density: (1, n) or (M, n) float64, of all members.
        recorded: (n,) bool: which members are recorded clips.
        log: Take the logarithms of u and v.
        removed: (M, n) bool: which members are not there.
    """
    there = _there(lists, removed)
    first = there.int().argmax(dim=2, keepdim=True)  # (M, n, 1): the nearest that is there
    u = lists.distances.expand(there.shape).gather(2, first)[..., 0]
    v = density.gather(1, lists.indices.expand(there.shape).gather(2, first)[..., 0])
    if log:
        u, v = (u + EPSILON).log(), (v + EPSILON).log()
    used = there.any(dim=2) & recorded
    if removed is not None:
        used = used & ~removed
    number = used.sum(dim=1, keepdim=True).clamp_min(1)
    u, v = u.where(used, 0.0), v.where(used, 0.0)
    u = (u - u.sum(dim=1, keepdim=True) / number).where(used, 0.0)
    v = (v - v.sum(dim=1, keepdim=True) / number).where(used, 0.0)
    variance = v.square().mean(dim=1)
    covariance = (u * v).mean(dim=1)
    return torch.where(variance > EPSILON**2, covariance / variance, 0.0)


def rescaled(distance: Tensor, density: Tensor, slope: Tensor, how: Normalization) -> Tensor:
    """Return distances (M, n) rescaled by densities and slopes that broadcast to them."""
    if how == "none":
        return distance
    if how == "local_density":
        return distance / (density + EPSILON)
    if how.startswith("log"):
        distance, density = (distance + EPSILON).log(), (density + EPSILON).log()
    return distance - density * (slope if how.endswith("varmin") else 1.0)


def neutral_density(how: Normalization) -> float:
    """Return the density that leaves distances as they are, for a bank of a single clip."""
    return 1.0 if how in ("local_density", "log_local_density", "log_varmin") else 0.0


def _there(lists: NeighborLists, removed: Tensor | None) -> Tensor:
    """Return (1, n, L) or (M, n, L) bool: which entries of the lists count."""
    there = lists.distances.isfinite()[None]
    return there if removed is None else there & ~removed[:, lists.indices]


__all__ = [
    "EPSILON",
    "NeighborLists",
    "Normalization",
    "densities",
    "neighbor_lists",
    "neutral_density",
    "related",
    "rescaled",
    "varmin_slopes",
]

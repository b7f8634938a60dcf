"""More references for the few target clips: mixtures of two clips each.

A mixture is kept as the positions of its two clips and the share of the first one; the embedding
follows from them. So a bank knows which of its members came from a clip, and can leave them out
together with it.
"""

from typing import Literal, NamedTuple

import torch
from torch import Tensor

from .detector_base import DOMAIN_IDS, content_order
from .neighbor_search import Metric, ReferenceIndex, prepared

Oversampling = Literal["none", "smote", "memmix"]

MEMMIX_SHARE = 0.9  # of the target clip in a mixture
DEFAULT_NEIGHBORS = {"none": 0, "smote": 3, "memmix": 990}  # as published


class Mixtures(NamedTuple):
    """S members of the target domain: parents (S, 2) int64, and the share of the first (S,)."""

    parents: Tensor
    shares: Tensor

    def embed(self, references: Tensor, metric: Metric) -> Tensor:
        """Return share * first + (1 - share) * second, (S, views, bands, size), `prepared`."""
        first, second = references[self.parents[:, 0]], references[self.parents[:, 1]]
        shares = self.shares[:, None, None, None]
        return prepared(shares * first + (1 - shares) * second, metric)


def smote(
    references: Tensor,
    domain_ids: Tensor,
    *,
    ratio: float,
    num_neighbors: int,
    seed: int,
    metric: Metric,
) -> Mixtures:
    """Draw mixtures of each target clip and one of its nearest target clips (Chawla et al., 2002).

    x' = x_i + u (x_j - x_i), u ~ U(0, 1). The target clips take turns to be x_i; the draws belong
    to a clip's content, so they do not change with the order of the references.

    Args:
        references: (N, views, bands, size), `prepared`.
        domain_ids: (N,), see `DOMAIN_IDS`.
        ratio: How many target members there are afterwards, as a share of the other clips; fewer
            than there are target clips adds none.
        num_neighbors: k; all other target clips if there are fewer. A single one gets no mixture.
        seed: Of the draws.
        metric: Of the neighbourhood, averaged over views and bands: a mixture has two parents, not
            two in each band.
    """
    targets, others = _targets_and_others(references, domain_ids)
    count = round(ratio * len(others)) - len(targets)
    k = min(num_neighbors, len(targets) - 1)
    if count < 1 or k < 1:
        return _nothing()
    clips = references[targets]
    itself = torch.arange(len(targets))
    neighbors, _ = ReferenceIndex(clips, metric).nearest(
        clips, k, hidden=lambda rows, columns: rows[:, None] == columns
    )
    generator = torch.Generator().manual_seed(seed)
    first = itself.repeat(-(-count // len(targets)))[:count]
    second = neighbors[first, torch.randint(k, (count,), generator=generator)]
    shares = 1 - torch.rand(count, generator=generator)
    return Mixtures(torch.stack([targets[first], targets[second]], dim=1), shares)


def memmix(
    references: Tensor, domain_ids: Tensor, *, num_neighbors: int, metric: Metric
) -> Mixtures:
    """Mix each target clip with each of its nearest other clips, 0.9 to 0.1 (GenRep).

    Args:
        references: (N, views, bands, size), `prepared`.
        domain_ids: (N,), see `DOMAIN_IDS`.
        num_neighbors: Mixtures per target clip; all other clips if there are fewer.
        metric: Of the neighbourhood, averaged over views and bands.
    """
    targets, others = _targets_and_others(references, domain_ids)
    if not len(targets) or not len(others):
        return _nothing()
    found, _ = ReferenceIndex(references[others], metric).nearest(
        references[targets], num_neighbors
    )
    parents = torch.stack([targets[:, None].expand(found.shape), others[found]], dim=2)
    return Mixtures(parents.flatten(0, 1), torch.full((found.numel(),), MEMMIX_SHARE))


def _targets_and_others(references: Tensor, domain_ids: Tensor) -> tuple[Tensor, Tensor]:
    """Return the positions of target clips, in the order of their content, and of the others."""
    is_target = domain_ids == DOMAIN_IDS["target"]
    targets = is_target.nonzero()[:, 0]
    return targets[content_order(references[targets])], (~is_target).nonzero()[:, 0]


def _nothing() -> Mixtures:
    return Mixtures(torch.empty(0, 2, dtype=torch.int64), torch.empty(0))


__all__ = ["DEFAULT_NEIGHBORS", "Mixtures", "Oversampling", "memmix", "smote"]

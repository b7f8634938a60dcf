"""A smaller bank: the clips that leave no other clip far from one of them."""

import torch
from torch import Tensor

from .detector_base import DOMAIN_IDS
from .neighbor_search import REFERENCE_BLOCK


def coreset(references: Tensor, domain_ids: Tensor, size: int) -> Tensor:
    """Return the positions of all target clips and of `size` others, ascending.

    The others are chosen by the greedy k-centre rule: first the clip nearest to their mean, then
    again and again the one farthest from those chosen (Gonzalez, 1985), by the Euclidean distance
    over all views and bands together. So a clip left out lies at most twice as far from a kept one
    as the best choice of so many clips could make it; what that costs in a score is the distance to
    the kept clip at most, where the score is a mean Euclidean distance to one neighbour.

    Args:
        references: (N, views, bands, size), `prepared`.
        domain_ids: (N,), see `DOMAIN_IDS`.
        size: How many clips are kept that are not of the target domain; all if there are fewer.
    """
    is_target = domain_ids == DOMAIN_IDS["target"]
    others = (~is_target).nonzero()[:, 0]
    if len(others) > size:
        clips = references[others] if is_target.any() else references
        others = others[_k_centers(clips.flatten(1), size)]
    return torch.cat([others, is_target.nonzero()[:, 0]]).sort().values


def _k_centers(clips: Tensor, size: int) -> Tensor:
    """Return the positions (size,) of the centres among (n, d) clips."""
    first = int(_distances(clips, clips.mean(dim=0)).argmin())
    chosen = [first]
    away = _distances(clips, clips[first])
    for _ in range(size - 1):
        away[chosen[-1]] = -1.0  # never again, not even where all that is left are duplicates
        chosen.append(int(away.argmax()))
        away = torch.minimum(away, _distances(clips, clips[chosen[-1]]))
    return torch.tensor(chosen)


def _distances(clips: Tensor, center: Tensor) -> Tensor:
    """Return squared distances (n,) float32 to one clip, in blocks."""
    return torch.cat([(block - center).square().sum(1) for block in clips.split(REFERENCE_BLOCK)])


__all__ = ["coreset"]

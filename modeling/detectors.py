"""Detectors: embeddings of normal clips in, anomaly scores of new clips out.

Every detector of `DETECTORS` follows `Detector`. Its fitted state is plain tensors, so that it goes
into safetensors as it is, and `fit` is the only place where anything is learned.
"""

from collections.abc import Callable, Mapping, Sequence
from typing import Literal, Protocol, Self, get_args

import torch
import torch.nn.functional as F
from torch import Tensor

Metric = Literal["cosine", "euclidean"]

# Distances are taken between so many queries and references at a time: 16 MiB of float64.
QUERY_BLOCK = 256
REFERENCE_BLOCK = 8192


class NotFittedError(ValueError):
    """A detector was asked for scores before `fit`."""


class Detector(Protocol):
    """What every entry of `DETECTORS` constructs.

    An embedding is (clips, views, bands, size); a score depends on its own clip and on the
    references, never on the other clips that are scored with it.
    """

    def fit(self, embedding: Tensor, *, domains: Sequence[str | None] | None = None) -> Self:
        """Learn from normal clips."""

    def anomaly_score(self, embedding: Tensor) -> Tensor:
        """Return (M,) float32; higher is more anomalous."""

    def leave_one_out(self) -> Tensor:
        """Return (N,) float32: each reference scored by the others."""

    def nearest(self, embedding: Tensor, k: int) -> tuple[Tensor, Tensor]:
        """Return indices (M, k) of the nearest references, nearest first, and their distances."""

    def state_dict(self) -> dict[str, Tensor]:
        """Return what `fit` learned."""

    def load_state_dict(self, state: Mapping[str, Tensor]) -> Self:
        """Take over what another detector's `state_dict` returned."""


class KnnDetector:
    """Mean distance to the k nearest references of each view and band, in the nearer domain.

    Each view and band chooses its own neighbours; the distances are averaged over neighbours, bands
    and views; the score is the smallest average of any domain (ASDKit; Yamashita et al., "BEAM",
    for the bands). References without a known domain (None) make one domain of their own. A clip's
    score is the same alone and in any batch: distances are taken in float64 and rounded to float32
    once, so two results differ by one such rounding at most.

    Args:
        num_neighbors: k. A domain with fewer references (often ten target clips) uses all it has.
        metric: "cosine" is 1 - cos in [0, 2]; "euclidean" takes lengths into account.
        per_domain: Whether source and target are searched apart; False makes one pool.
    """

    def __init__(
        self, *, num_neighbors: int = 1, metric: Metric = "cosine", per_domain: bool = True
    ) -> None:
        if num_neighbors < 1:
            raise ValueError(f"num_neighbors={num_neighbors} must be 1 or more.")
        if metric not in get_args(Metric):
            choices = ", ".join(repr(choice) for choice in get_args(Metric))
            raise ValueError(f"metric={metric!r} is not one of {choices}.")
        self.num_neighbors = num_neighbors
        self.metric = metric
        self.per_domain = per_domain
        self.references_: Tensor | None = None  # (N, views, bands, size), unit vectors for cosine
        self.domain_ids_: Tensor | None = None  # (N,) int64

    def fit(self, embedding: Tensor, *, domains: Sequence[str | None] | None = None) -> Self:
        """Remember normal clips.

        Args:
            embedding: (N, views, bands, size), N >= 1.
            domains: N times "source", "target" or None (unknown); None makes one pool.

        Raises:
            ValueError: A wrong shape, a value that is not finite, or another number of domains.
        """
        embedding = _checked(embedding)
        if not len(embedding):
            raise ValueError("fit got no clips. Give KnnDetector one normal clip or more.")
        names = [None] * len(embedding) if domains is None or not self.per_domain else domains
        if len(names) != len(embedding):
            raise ValueError(
                f"fit got {len(embedding)} clips but {len(names)} domains. Give one per clip, "
                "None where it is unknown."
            )
        order = sorted(set(names), key=lambda name: (name is None, name or ""))
        self.domain_ids_ = torch.tensor([order.index(name) for name in names])
        self.references_ = F.normalize(embedding, dim=-1) if self.metric == "cosine" else embedding
        return self

    def anomaly_score(self, embedding: Tensor) -> Tensor:
        """Return (M,) float32; higher is more anomalous. In [0, 2] for the cosine metric.

        Args:
            embedding: (M, views, bands, size).

        Raises:
            NotFittedError: `fit` was not called.
            ValueError: Views, bands or size differ from the references', or a value is not finite.
        """
        embedding = self._query(embedding)
        blocks = torch.arange(len(embedding)).split(QUERY_BLOCK)
        scores = [self._score(embedding[block]) for block in blocks]
        return torch.cat(scores) if scores else torch.empty(0)

    def leave_one_out(self) -> Tensor:
        """Return (N,) float32: the score of each reference by all the other references.

        A reference that is alone in its domain is scored by the other domains.

        Raises:
            NotFittedError: `fit` was not called.
            ValueError: There is only one reference.
        """
        references, _ = self._fitted()
        if len(references) < 2:
            raise ValueError(
                "leave_one_out needs two references or more, got 1. Fit on more normal clips."
            )
        blocks = torch.arange(len(references)).split(QUERY_BLOCK)
        return torch.cat([self._score(references[block], left_out=block) for block in blocks])

    def nearest(self, embedding: Tensor, k: int) -> tuple[Tensor, Tensor]:
        """Return the references nearest to each clip, of all domains, nearest first.

        Args:
            embedding: (M, views, bands, size).
            k: How many; all references if there are fewer.

        Returns:
            Indices into the fitted references, (M, k) int64, and distances, (M, k) float32. A
            distance is the mean over views and bands for that one reference.
        """
        references, _ = self._fitted()
        if k < 1:
            raise ValueError(f"k={k} must be 1 or more.")
        k = min(k, len(references))
        embedding = self._query(embedding)
        indices, distances = [torch.empty(0, k, dtype=torch.int64)], [torch.empty(0, k)]
        for query in embedding.split(QUERY_BLOCK):
            best = torch.empty(len(query), 0, dtype=torch.float64)
            found = torch.empty(len(query), 0, dtype=torch.int64)
            for rows in torch.arange(len(references)).split(REFERENCE_BLOCK):
                distance = torch.zeros(len(query), len(rows), dtype=torch.float64)
                for view, band in self._parts():
                    distance += self._distance(query[:, view, band], rows, view, band)
                best = torch.cat([best, distance / len(self._parts())], dim=1)
                found = torch.cat([found, rows.expand(len(query), -1)], dim=1)
                best, order = best.topk(min(k, best.shape[1]), dim=1, largest=False)
                found = found.gather(1, order)
            indices.append(found)
            distances.append(best.float())
        return torch.cat(indices), torch.cat(distances)

    def state_dict(self) -> dict[str, Tensor]:
        """Return the references and the id of each one's domain."""
        references, domain_ids = self._fitted()
        return {"references": references, "domain_ids": domain_ids}

    def load_state_dict(self, state: Mapping[str, Tensor]) -> Self:
        """Take over the references of another detector with the same options."""
        missing = {"references", "domain_ids"} - set(state)
        if missing:
            raise ValueError(f"A KnnDetector's state lacks {sorted(missing)}; got {sorted(state)}.")
        references = _checked(state["references"])
        if state["domain_ids"].shape != (len(references),):
            raise ValueError(
                f"domain_ids {tuple(state['domain_ids'].shape)} must hold one id for each of the "
                f"{len(references)} references."
            )
        self.references_, self.domain_ids_ = references, state["domain_ids"].long().cpu()
        return self

    def _fitted(self) -> tuple[Tensor, Tensor]:
        if self.references_ is None or self.domain_ids_ is None:
            raise NotFittedError(
                "KnnDetector has no references. Call fit with embeddings of normal clips first."
            )
        return self.references_, self.domain_ids_

    def _query(self, embedding: Tensor) -> Tensor:
        """Return clips to be scored, checked against the references."""
        references, _ = self._fitted()
        embedding = _checked(embedding)
        if embedding.shape[1:] != references.shape[1:]:
            raise ValueError(
                f"An embedding of (views, bands, size) {tuple(embedding.shape[1:])} cannot be "
                f"compared with references of {tuple(references.shape[1:])}. Extract both with the "
                "same model."
            )
        return embedding

    def _parts(self) -> list[tuple[int, int]]:
        """Return every (view, band)."""
        _, views, bands, _ = self._fitted()[0].shape
        return [(view, band) for view in range(views) for band in range(bands)]

    def _score(self, query: Tensor, *, left_out: Tensor | None = None) -> Tensor:
        """Score one block of clips; `left_out` names the reference (M,) that each must not see."""
        _, domain_ids = self._fitted()
        per_domain = []
        for domain in domain_ids.unique():
            rows = (domain_ids == domain).nonzero()[:, 0]
            parts = [self._domain_distance(query, rows, v, b, left_out) for v, b in self._parts()]
            per_domain.append(torch.stack(parts).mean(dim=0))
        return torch.stack(per_domain).amin(dim=0).float()

    def _domain_distance(
        self, query: Tensor, rows: Tensor, view: int, band: int, left_out: Tensor | None
    ) -> Tensor:
        """Return (M,): mean distance to the nearest of `rows`; infinite if all are left out."""
        k = min(self.num_neighbors, len(rows))
        nearest = torch.empty(len(query), 0, dtype=torch.float64)
        for block in rows.split(REFERENCE_BLOCK):
            distance = self._distance(query[:, view, band], block, view, band)  # (M, block)
            if left_out is not None:
                distance = distance.masked_fill(block == left_out[:, None], torch.inf)
            nearest = torch.cat([nearest, distance], dim=1)
            nearest = nearest.topk(min(k, nearest.shape[1]), dim=1, largest=False).values
        there = nearest.isfinite()
        mean = nearest.where(there, 0.0).sum(dim=1) / there.sum(dim=1)
        return mean.where(there.any(dim=1), torch.inf)

    def _distance(self, query: Tensor, rows: Tensor, view: int, band: int) -> Tensor:
        """Return (M, rows) float64 between one view and band of clips and of some references."""
        references = self._fitted()[0][rows, view, band].double()
        if self.metric == "euclidean":
            return torch.cdist(query.double(), references)
        return (1 - F.normalize(query.double(), dim=-1) @ references.T).clamp(0, 2)


class NormDetector(KnnDetector):
    """Length of the embedding, averaged over views and bands; the references decide nothing.

    For models whose embedding is what they could not explain of a clip (a residual, or their own
    anomaly score as a vector of one): what is normal they have learned themselves, and it lies at
    zero. The references are kept for `nearest`, which says whose embeddings lie next to a clip's.
    """

    def __init__(self) -> None:
        super().__init__(metric="euclidean", per_domain=False)

    def anomaly_score(self, embedding: Tensor) -> Tensor:
        """Return (M,) float32 >= 0; higher is more anomalous. As `KnnDetector`'s."""
        lengths: Tensor = self._query(embedding).double().norm(dim=-1)  # (M, views, bands)
        return lengths.mean(dim=(1, 2)).float()

    def leave_one_out(self) -> Tensor:
        """Return (N,) float32: the scores of the references, which depend on no other. As above."""
        references, _ = self._fitted()
        if len(references) < 2:
            raise ValueError(
                "leave_one_out needs two references or more, got 1. Fit on more normal clips."
            )
        return self.anomaly_score(references)


def _checked(embedding: Tensor) -> Tensor:
    """Return embeddings as float32 on the CPU, or raise ValueError."""
    embedding = torch.as_tensor(embedding).detach().float().cpu()
    if embedding.ndim != 4:
        raise ValueError(
            f"An embedding of shape {tuple(embedding.shape)} is not (clips, views, bands, size). "
            "Give what AsdModel returns, also for one clip: embedding[None]."
        )
    if wrong := (~embedding.isfinite()).flatten(1).any(dim=1).nonzero()[:, 0].tolist():
        raise ValueError(
            f"Embeddings of clips {wrong[:5]} hold NaN or infinite values. Check these recordings "
            "for such samples."
        )
    return embedding


# Name in AsdConfig -> constructor; options are its keyword-only arguments.
DETECTORS: dict[str, Callable[..., Detector]] = {"knn": KnnDetector, "norm": NormDetector}

__all__ = ["DETECTORS", "Detector", "KnnDetector", "NormDetector", "NotFittedError"]

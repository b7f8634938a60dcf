"""Detectors that describe the references by a model: the frame that the families fill."""

import copy
from collections.abc import Mapping, Sequence
from typing import Self

import torch
from torch import Tensor

from .detector_base import DOMAIN_IDS, Decomposition, ReferenceDetector, content_order
from .neighbor_search import Metric

NUM_FOLDS = 10


class ModelDetector(ReferenceDetector):
    """A model of each view and band, of each domain or of all references together.

    A clip's score is the mean over views and bands, and the smallest of any domain. A domain with a
    single reference has no shape of its own: it joins the largest one. The references stay in the
    state, so that `nearest` can answer and the bank can be fitted again.

    A subclass has `_fit_part` and `_score_part`.

    Args:
        metric: Of `nearest`, and of the model where it measures distances.
        per_domain: Whether each domain has a model of its own.
        views: The views that are scored; None takes all.
    """

    def __init__(self, *, metric: Metric, per_domain: bool, views: Sequence[int] | None) -> None:
        super().__init__(metric=metric, views=views)
        self.per_domain = per_domain
        # Name and number of a model -> what it is, (views, bands, ...)
        self.parameters_: dict[str, Tensor] = {}

    def leave_one_out(self) -> Tensor:
        """Return (N,) float32: the score of each reference by a model of others.

        The references are dealt to ten folds (of one clip each, if there are ten or fewer), domain
        by domain; each fold is scored by the models of all the others. These have seen a tenth less
        than those in use, so that a new normal clip scores a little lower, not higher.

        Raises:
            NotFittedError: `fit` was not called.
            ValueError: There is only one reference.
        """
        references, domain_ids, rows = self._kept()
        self._two_or_more()
        order = content_order(references)
        order = order[domain_ids[order].sort(stable=True).indices]
        fold = torch.empty(len(rows), dtype=torch.int64)
        fold[order] = torch.arange(len(rows)) % NUM_FOLDS
        scores = torch.empty(len(rows))
        for number in range(min(NUM_FOLDS, len(rows))):
            others = copy.copy(self)
            used, scored = fold != number, fold == number
            others._keep(references[used], domain_ids[used], rows[used])
            others._learn()
            scores[rows[scored]] = others.anomaly_score_of(references[scored])
        return scores

    def anomaly_score_of(self, prepared: Tensor) -> Tensor:
        """Return the scores (M,) float32 of clips as the bank keeps them, its views only."""
        return self._score(prepared).float()

    def state_dict(self) -> dict[str, Tensor]:
        """Return the references and every model."""
        return super().state_dict() | self.parameters_

    def load_state_dict(self, state: Mapping[str, Tensor]) -> Self:
        """Take over the references and models of another detector with the same options."""
        super().load_state_dict(state)
        kept = {"references", "domain_ids", "rows"}
        self.parameters_ = {name: t.cpu() for name, t in state.items() if name not in kept}
        missing = [n for n in range(len(self._groups())) if not self._models(n)]
        if missing:
            raise ValueError(
                f"A {type(self).__name__}'s state lacks the models {missing}; got {sorted(state)}. "
                "Load it with the options it was fitted with."
            )
        return self

    def _learn(self) -> None:
        references, domain_ids, _ = self._kept()
        self.parameters_ = {}
        shape = references.shape[1:3]
        groups = self._groups()
        largest = max(groups, key=len)
        for number, group in enumerate(groups):
            target = domain_ids[group] == DOMAIN_IDS["target"]
            parts = [
                self._fit_part(references[group, v, b], target, references[largest, v, b])
                for v, b in self._parts()
            ]
            for name in parts[0]:
                stacked = torch.stack([part[name] for part in parts])
                self.parameters_[f"{name}.{number}"] = stacked.unflatten(0, shape).contiguous()

    def _score(self, query: Tensor) -> Tensor:
        return self._group_scores(query).amin(dim=0)

    def _group_scores(self, query: Tensor) -> Tensor:
        """Return (groups, M) float64: the mean over views and bands by each group's models."""
        references, _, _ = self._kept()
        clips = self._as_kept(query)
        scores = []
        for number, group in enumerate(self._groups()):
            models = self._models(number)
            parts = [
                self._score_part(
                    {name: stacked[v, b] for name, stacked in models.items()},
                    clips[:, v, b],
                    references[group, v, b],
                )
                for v, b in self._parts()
            ]
            scores.append(torch.stack(parts).mean(dim=0))
        return torch.stack(scores)

    def _decompose(self, query: Tensor) -> Decomposition | None:
        models = self._models(int(self._group_scores(query)[:, 0].argmin()))
        clip = self._as_kept(query)[0]  # (views, bands, size)
        parts = [
            self._decompose_part(
                {name: stacked[v, b] for name, stacked in models.items()}, clip[v, b]
            )
            for v, b in self._parts()
        ]
        found = [part for part in parts if part is not None]
        # A clip that is brought to length 1 is its own sum divided by its length.
        lengths = torch.ones_like(clip[..., :1])
        if self.metric != "euclidean":
            lengths = query[0].double().norm(dim=-1, keepdim=True)
        if len(found) < len(parts) or not bool(lengths.all()):
            return None
        origin, direction = (
            torch.stack([part[i] for part in found]).unflatten(0, clip.shape[:2]) for i in range(2)
        )
        return Decomposition((lengths * origin)[None], (direction / lengths / len(parts))[None])

    def _groups(self) -> list[Tensor]:
        """Return the positions of the references that each model is made of."""
        _, domain_ids, _ = self._kept()
        if not self.per_domain:
            return [torch.arange(len(domain_ids))]
        ids, counts = domain_ids.unique(return_counts=True)
        largest = ids[counts.argmax()]
        joined = domain_ids.clone()
        for domain in ids[counts == 1]:
            joined[joined == domain] = largest
        return [(joined == domain).nonzero()[:, 0] for domain in joined.unique()]

    def _models(self, number: int) -> dict[str, Tensor]:
        """Return the parameters of one group's models by their bare names."""
        return {
            name.rpartition(".")[0]: stacked
            for name, stacked in self.parameters_.items()
            if name.rpartition(".")[2] == str(number)
        }

    def _as_kept(self, query: Tensor) -> Tensor:
        """Return clips in float64, of length 1 where the references are."""
        if self.metric == "euclidean":
            return query.double()
        return torch.nn.functional.normalize(query.double(), dim=-1)

    def _fit_part(self, clips: Tensor, target: Tensor, largest: Tensor) -> dict[str, Tensor]:
        """Return the model of one view and band.

        Args:
            clips: (n, size) float32, as the bank keeps them.
            target: (n,) bool: which are of the target domain.
            largest: (m, size), the same view and band of the largest group.
        """
        raise NotImplementedError

    def _score_part(self, model: dict[str, Tensor], query: Tensor, clips: Tensor) -> Tensor:
        """Return (M,) float64 by one model.

        Args:
            model: What `_fit_part` returned.
            query: (M, size) float64, of length 1 where the references are.
            clips: (n, size) float32, what the model was made of.
        """
        raise NotImplementedError

    def _decompose_part(self, model: dict[str, Tensor], clip: Tensor) -> Decomposition | None:  # noqa: ARG002  a subclass may
        """Return the score by one model as a product of two vectors (size,), None if it is none.

        Args:
            model: What `_fit_part` returned.
            clip: (size,) float64, of length 1 where the references are.
        """
        return None


__all__ = ["ModelDetector"]

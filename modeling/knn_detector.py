"""Nearest neighbours: the distance to what is most like a clip among the references."""

from collections.abc import Sequence
from typing import Literal, NamedTuple, get_args

import torch
from torch import Tensor

from .coreset import coreset
from .density import (
    EPSILON,
    NeighborLists,
    Normalization,
    densities,
    neighbor_lists,
    neutral_density,
    related,
    rescaled,
    varmin_slopes,
)
from .detector_base import (
    DOMAIN_IDS,
    QUERY_BLOCK,
    Decomposition,
    ReferenceDetector,
    check_at_least,
    check_choice,
    difference,
)
from .neighbor_search import Metric, ReferenceIndex
from .synthetic_references import DEFAULT_NEIGHBORS, Mixtures, Oversampling, memmix, smote

Standardization = Literal["none", "median", "z_score"]
DomainChoice = Literal["clip", "view"]

LEFT_OUT_BLOCK = 2**20  # densities held at a time while references are left out


class _Group(NamedTuple):
    """Members that are searched together: recorded clips first, then mixtures."""

    domain: int
    members: Tensor  # (n, views, bands, size)
    clips: Tensor  # (n, 2) positions of the references a member is made of; a recorded one is two
    recorded: Tensor  # (n,) bool
    indexes: dict[tuple[int, int], ReferenceIndex]  # of each view and band


class KnnDetector(ReferenceDetector):
    """Mean distance to the k nearest references of each view and band, in the nearer domain.

    Each view and band chooses its own neighbours; the distances are averaged over neighbours, bands
    and views; the score is the smallest average of any domain (ASDKit; "BEAM", arXiv 2603.13749,
    for the bands). References without a known domain (None) make one domain of their own. A clip's
    score is the same alone and in any batch: distances are taken in float64 and rounded to float32
    once, so two results differ by one such rounding at most.

    On the way there, each step is an option: mixtures join the target clips, distances are rescaled
    by the density around the reference they lead to, and the domains' scores are brought to one
    scale. All of these learn from the references only. `leave_one_out` leaves out a clip together
    with its mixtures, in densities and slopes too; the scales of `standardization`, which are made
    of leave-one-out scores themselves, stay those of the whole bank.

    Args:
        num_neighbors: k. A domain with fewer references (often ten target clips) uses all it has.
        metric: "cosine" is 1 - cos in [0, 2]; "euclidean" takes lengths into account;
            "unit_euclidean" is the Euclidean distance of vectors of length 1.
        per_domain: Whether source and target are searched apart; False makes one pool.
        domain_choice: Whether the nearer domain is that of the clip, by the mean over its views, or
            each view has its own, and the mean is taken of the smallest scores.
        normalization: What becomes of each distance, see `Normalization` in density.py. The k
            smallest rescaled distances count. Local density and VarMin were published for one pool,
            `per_domain=False`; ten target clips are few to learn VarMin's slope from.
        density_neighbors: K, the others around a reference that make its density (or all its domain
            has). A reference without any takes the mean density of the bank's.
        target_density_neighbors: K of the target domain; None takes the same.
        density_total: Take the sum of the K distances instead of their mean, which only matters
            between domains of different K.
        standardization: What is done to a domain's score before the smallest is taken: "median"
            divides by the median of its references' leave-one-out scores, "z_score" takes off their
            mean and divides by their standard deviation. A domain of one takes all references'.
            With `domain_choice="view"` each view has a scale of its own.
        oversampling: Mixtures added to the target clips, "smote" or "memmix" (see
            synthetic_references.py); a machine without target clips gets none.
        oversampling_ratio: Of SMOTE: target members afterwards, as a share of the other clips.
        oversampling_neighbors: Clips that a target clip is mixed with; None takes 3 for SMOTE and
            990 for MemMix.
        seed: Of SMOTE's draws.
        coreset_size: Keep so many references only, chosen to cover the others, besides all target
            clips (see coreset.py); None keeps all. Such a bank has no leave-one-out scores.
        views: The views that are scored; None takes all.

    See Also:
        MahalanobisDetector and GmmDetector, which describe a domain by few numbers and do not grow
        with the bank; LofDetector, whose density is also that of the clip itself.
    """

    # What `fit` leaves behind, where an option asks for it.
    parents_: Tensor  # (S, 2) int64, of mixtures
    shares_: Tensor  # (S,)
    densities_: Tensor  # (members, views, bands) float64, group by group
    slopes_: Tensor  # (groups, views, bands) float64
    locations_: Tensor  # (groups, 1 or views) float64
    scales_: Tensor  # likewise

    def __init__(
        self,
        *,
        num_neighbors: int = 1,
        metric: Metric = "cosine",
        per_domain: bool = True,
        domain_choice: DomainChoice = "clip",
        normalization: Normalization = "none",
        density_neighbors: int = 4,
        target_density_neighbors: int | None = None,
        density_total: bool = False,
        standardization: Standardization = "none",
        oversampling: Oversampling = "none",
        oversampling_ratio: float = 0.25,
        oversampling_neighbors: int | None = None,
        seed: int = 0,
        coreset_size: int | None = None,
        views: Sequence[int] | None = None,
    ) -> None:
        super().__init__(metric=metric, views=views)
        check_choice("domain_choice", domain_choice, get_args(DomainChoice))
        check_choice("normalization", normalization, get_args(Normalization))
        check_choice("standardization", standardization, get_args(Standardization))
        check_choice("oversampling", oversampling, get_args(Oversampling))
        check_at_least("num_neighbors", num_neighbors, 1)
        check_at_least("density_neighbors", density_neighbors, 1)
        check_at_least("target_density_neighbors", target_density_neighbors, 1)
        check_at_least("oversampling_ratio", oversampling_ratio, 0.0)
        check_at_least("oversampling_neighbors", oversampling_neighbors, 1)
        check_at_least("coreset_size", coreset_size, 1)
        if standardization == "median" and normalization not in ("none", "local_density"):
            raise ValueError(
                f"standardization='median' divides scores, and those of normalization="
                f"{normalization!r} may be negative. Take standardization='z_score'."
            )
        self.num_neighbors = num_neighbors
        self.per_domain = per_domain
        self.domain_choice: DomainChoice = domain_choice
        self.normalization: Normalization = normalization
        self.density_neighbors = density_neighbors
        self.target_density_neighbors = target_density_neighbors
        self.density_total = density_total
        self.standardization: Standardization = standardization
        self.oversampling: Oversampling = oversampling
        self.oversampling_ratio = oversampling_ratio
        self.oversampling_neighbors = oversampling_neighbors
        self.seed = seed
        self.coreset_size = coreset_size

    def leave_one_out(self) -> Tensor:
        """Return (N,) float32: the score of each reference by all the other references.

        A reference that is alone in its domain is scored by the other domains.

        Raises:
            NotFittedError: `fit` was not called.
            ValueError: There is only one reference, or a coreset.
        """
        references, _, rows = self._kept()
        self._two_or_more()
        if self.coreset_size is not None:
            raise ValueError(
                f"coreset_size={self.coreset_size} keeps the references that lie far apart, so "
                "their scores by each other say nothing of a new normal clip. Calibrate with clips "
                "that are held out, or keep all references."
            )
        lists = self._neighbor_lists()
        scores = torch.empty(len(rows))
        for positions in torch.arange(len(rows)).split(self._left_out_at_a_time()):
            scores[rows[positions]] = self._smallest(
                references[positions], left_out=positions, lists=lists
            ).float()
        return scores

    def _learn(self) -> None:
        if self.coreset_size is not None:
            references, domain_ids, rows = self._kept()
            kept = coreset(references, domain_ids, self.coreset_size)
            self._keep(references[kept], domain_ids[kept], rows[kept])
        references, domain_ids, _ = self._kept()
        k = self.oversampling_neighbors or DEFAULT_NEIGHBORS[self.oversampling]
        if self.oversampling == "smote":
            self.parents_, self.shares_ = smote(
                references,
                domain_ids,
                ratio=self.oversampling_ratio,
                num_neighbors=k,
                seed=self.seed,
                metric=self.metric,
            )
        elif self.oversampling == "memmix":
            self.parents_, self.shares_ = memmix(
                references, domain_ids, num_neighbors=k, metric=self.metric
            )
        self._groups = self._grouped()
        if self.normalization != "none":
            lists = self._neighbor_lists()
            parts = [self._density(lists[part]) for part in self._parts()]
            shape = references.shape[1:3]
            density, slope = (
                torch.stack([torch.cat(part[i], dim=-1)[0] for part in parts], dim=1)
                for i in range(2)
            )
            self.densities_ = density.unflatten(1, shape)
            self.slopes_ = slope.unflatten(1, shape)
        if self.standardization != "none":
            self.locations_, self.scales_ = self._standard()

    def _learned(self) -> list[str]:
        names = [] if self.oversampling == "none" else ["parents", "shares"]
        names += [] if self.normalization == "none" else ["densities", "slopes"]
        return names + ([] if self.standardization == "none" else ["locations", "scales"])

    def _loaded(self) -> None:
        self._groups = self._grouped()
        members = sum(len(group.members) for group in self._groups)
        if self.normalization != "none" and len(self.densities_) != members:
            raise ValueError(
                f"The state has {len(self.densities_)} densities, but there are {members} "
                "references and mixtures. Load it with the options it was fitted with."
            )

    def _grouped(self) -> list[_Group]:
        """Return the references and their mixtures by domain, or in one pool."""
        references, domain_ids, _ = self._kept()
        clips = torch.arange(len(references))[:, None].expand(-1, 2)
        groups = []
        ids = domain_ids if self.per_domain else torch.zeros_like(domain_ids)
        for domain, count in zip(*ids.unique(return_counts=True), strict=True):
            first = int((ids < domain).sum())  # the references are in the order of their domains
            chosen = slice(first, first + int(count))
            members, made_of = references[chosen], clips[chosen]
            recorded = torch.ones(len(members), dtype=torch.bool)
            takes_mixtures = domain == DOMAIN_IDS["target"] or not self.per_domain
            if self.oversampling != "none" and takes_mixtures:
                mixtures = Mixtures(self.parents_, self.shares_)
                members = torch.cat([members, mixtures.embed(references, self.metric)])
                made_of = torch.cat([made_of, mixtures.parents])
                recorded = torch.arange(len(members)) < int(count)
            indexes = {
                (view, band): ReferenceIndex(
                    members[:, view : view + 1, band : band + 1], self.metric
                )
                for view, band in self._parts()
            }
            groups.append(_Group(int(domain), members, made_of, recorded, indexes))
        return groups

    def _score(self, query: Tensor) -> Tensor:
        return self._smallest(query)

    def _decompose(self, query: Tensor) -> Decomposition | None:
        if self.normalization != "none" or self.standardization == "z_score":
            return None
        scores = self._domain_scores(query)[..., 0]  # (groups, 1 or views)
        scales = self.scales_ if self.standardization != "none" else torch.ones_like(scores)
        chosen = (scores / scales).argmin(dim=0)  # the group of the clip, or of each view
        _, views, bands, size = query.shape
        shape = (self.num_neighbors, views, bands, size)
        origin, direction = (torch.zeros(shape, dtype=torch.float64) for _ in range(2))
        for view, band in self._parts():
            column = view if len(chosen) > 1 else 0
            number = int(chosen[column])
            group = self._groups[number]
            one = query[:, view : view + 1, band : band + 1]
            found, _ = group.indexes[view, band].nearest(one, self.num_neighbors)
            nearest = group.members[found[0], view, band]  # (k, size)
            part = difference(query[0, view, band], nearest, self.metric)
            if part is None:
                return None
            counted = len(nearest)  # a small domain has fewer
            share = 1 / (counted * views * bands * scales[number, column])
            origin[:counted, view, band] = part.origin
            direction[:counted, view, band] = part.direction * share
        return Decomposition(origin, direction)

    def _smallest(
        self,
        query: Tensor,
        *,
        left_out: Tensor | None = None,
        lists: dict[tuple[int, int], list[NeighborLists]] | None = None,
    ) -> Tensor:
        """Return the smallest score of any domain; `left_out` (M,) names references not to see."""
        scores = self._domain_scores(query, left_out, lists)  # (groups, 1 or views, M)
        if self.standardization != "none":
            scores = (scores - self.locations_[..., None]) / self.scales_[..., None]
        return scores.amin(dim=0).mean(dim=0)

    def _domain_scores(
        self,
        query: Tensor,
        left_out: Tensor | None = None,
        lists: dict[tuple[int, int], list[NeighborLists]] | None = None,
    ) -> Tensor:
        """Return scores (groups, 1 or views, M), infinite where all of a group is left out."""
        by_group: list[list[Tensor]] = [[] for _ in self._groups]
        for part in self._parts():
            view, band = part
            first = 0
            density = slope = None
            if self.normalization != "none" and left_out is not None:
                assert lists is not None
                density, slope = self._density(lists[part], left_out)
            for number, group in enumerate(self._groups):
                last = first + len(group.members)
                if self.normalization == "none":
                    rescaling = None
                elif density is not None and slope is not None:
                    rescaling = density[number], slope[number]
                else:
                    rescaling = (
                        self.densities_[None, first:last, view, band],
                        self.slopes_[number, view, band].expand(1, 1),
                    )
                one = query[:, view : view + 1, band : band + 1]
                score = self._part_score(one, group.indexes[part], rescaling, left_out, group.clips)
                by_group[number].append(score)
                first = last
        scores = torch.stack([torch.stack(parts) for parts in by_group])  # (groups, parts, M)
        if self.domain_choice == "clip":
            return scores.mean(dim=1, keepdim=True)
        by_view: Tensor = scores.unflatten(1, query.shape[1:3]).mean(dim=2)
        return by_view

    def _part_score(
        self,
        query: Tensor,
        index: ReferenceIndex,
        rescaling: tuple[Tensor, Tensor] | None,
        left_out: Tensor | None,
        clips: Tensor,
    ) -> Tensor:
        """Return (M,): the mean of the k smallest distances, rescaled where that is asked for.

        Args:
            query: (M, 1, 1, size).
            index: Of one group's members, in the same view and band.
            rescaling: Their densities (1 or M, n), and slopes (1 or M, 1).
            left_out: (M,) positions of references not to see.
            clips: (n, 2) positions of the references that each member is made of.
        """

        def hidden(rows: Tensor, columns: Tensor) -> Tensor:
            assert left_out is not None
            return related(left_out[rows, None].expand(-1, 2), clips[columns])

        hide = None if left_out is None else hidden
        if rescaling is None:
            _, values = index.nearest(query, self.num_neighbors, hidden=hide)
        else:
            density, slope = rescaling

            def value(distance: Tensor, columns: slice) -> Tensor:
                return rescaled(distance, density[:, columns], slope, self.normalization)

            values = index.smallest(query, self.num_neighbors, value=value, hidden=hide)
        there = values.isfinite()
        mean = values.where(there, 0.0).sum(dim=1) / there.sum(dim=1)
        return mean.where(there.any(dim=1), torch.inf)

    def _left_out_at_a_time(self) -> int:
        """Return for how many references the densities of all others are looked at together."""
        if self.normalization == "none":
            return QUERY_BLOCK
        return max(1, min(QUERY_BLOCK, LEFT_OUT_BLOCK // sum(len(g.members) for g in self._groups)))

    def _num_density_neighbors(self, group: _Group) -> int:
        if group.domain == DOMAIN_IDS["target"] and self.target_density_neighbors is not None:
            return self.target_density_neighbors
        return self.density_neighbors

    def _neighbor_lists(self) -> dict[tuple[int, int], list[NeighborLists]]:
        """Return for each view and band the neighbours of each group's members."""
        if self.normalization == "none":
            return {}
        return {
            (view, band): [
                neighbor_lists(
                    group.members[:, view : view + 1, band : band + 1],
                    group.clips,
                    1 + self._num_density_neighbors(group),  # one may be left out
                    metric=self.metric,
                )
                for group in self._groups
            ]
            for view, band in self._parts()
        }

    def _density(
        self, lists: list[NeighborLists], left_out: Tensor | None = None
    ) -> tuple[list[Tensor], list[Tensor]]:
        """Return densities (1 or M, n) and slopes (1 or M, 1) of each group, in one view and band.

        Args:
            lists: Of each group's members, there.
            left_out: (M,) positions of references that are not there, one for each result.
        """
        found, gone = [], []
        for group, list_ in zip(self._groups, lists, strict=True):
            removed = None
            if left_out is not None:
                removed = related(left_out[:, None].expand(-1, 2), group.clips)
            k = self._num_density_neighbors(group)
            density = densities(list_, k, total=self.density_total, removed=removed)
            found.append(density if removed is None else density.masked_fill(removed, torch.nan))
            gone.append(removed)
        mean = torch.cat(found, dim=1).nanmean(dim=1, keepdim=True)
        mean = mean.nan_to_num(nan=neutral_density(self.normalization))
        found = [density.where(~density.isnan(), mean) for density in found]
        slopes = [torch.zeros(len(density), 1, dtype=torch.float64) for density in found]
        if self.normalization.endswith("varmin"):
            log = self.normalization.startswith("log")
            slopes = [
                varmin_slopes(list_, density, group.recorded, log=log, removed=removed)[:, None]
                for list_, density, group, removed in zip(
                    lists, found, self._groups, gone, strict=True
                )
            ]
        return found, slopes

    def _standard(self) -> tuple[Tensor, Tensor]:
        """Return what is taken off each domain's scores and what they are divided by.

        Returns:
            Two tensors (groups, 1 or views) float64.
        """
        references, lists = self._kept()[0], self._neighbor_lists()
        by_group = []
        for number, group in enumerate(self._groups):
            clips = group.clips[group.recorded, 0]
            scores = [
                self._domain_scores(references[block], block, lists)[number]
                for block in clips.split(self._left_out_at_a_time())
            ]
            by_group.append(torch.cat(scores, dim=1))  # (1 or views, n)
        scores = [group if group.shape[1] > 1 else torch.cat(by_group, dim=1) for group in by_group]
        standards = [[self._standard_of(row) for row in group] for group in scores]
        locations, scales = torch.tensor(standards, dtype=torch.float64).unbind(dim=2)
        return locations.clone(), scales.clamp_min(EPSILON)

    def _standard_of(self, scores: Tensor) -> tuple[float, float]:
        """Return location and scale of leave-one-out scores; those of a clip alone are infinite."""
        scores = scores[scores.isfinite()]
        if not len(scores):  # a bank of clips that are all alone in their domains
            return 0.0, 1.0
        if self.standardization == "median":
            return 0.0, float(scores.quantile(0.5))
        return float(scores.mean()), float(scores.std(correction=0))


__all__ = ["KnnDetector"]

"""What all detectors share: the protocol, the checks of what comes in, and the kept references."""

from collections.abc import Collection, Mapping, Sequence
from typing import NamedTuple, Protocol, Self, get_args

import torch
from torch import Tensor

from .neighbor_search import REFERENCE_BLOCK, Metric, ReferenceIndex, prepared

# Id of each domain in a state; a clip of an unknown domain has one, too.
DOMAIN_IDS = {"source": 0, "target": 1, None: 2}

QUERY_BLOCK = 256  # clips scored at a time


class NotFittedError(ValueError):
    """A detector was asked for scores before `fit`."""


class Decomposition(NamedTuple):
    """One clip's score as a sum of products, one for each term, view and band.

    score = ((embedding - origin) * direction).sum(), so that whatever the embedding is a sum of has
    a share in the score.

    Attributes:
        origin: (terms, views, bands, size) float64, what the clip is compared with, such as one of
            its neighbours a term, as long as the clip where lengths do not count.
        direction: Same shape; 0 in a view that is not scored.
    """

    origin: Tensor
    direction: Tensor


class Detector(Protocol):
    """What every entry of `DETECTORS` and `BANK_DETECTORS` constructs.

    An embedding is (clips, views, bands, size); a score depends on its own clip and on the
    references, never on the other clips that are scored with it. A view (a layer or a microphone)
    and a band of a clip are compared, if at all, with the same view and band of the references.
    """

    def fit(self, embedding: Tensor, *, domains: Sequence[str | None] | None = None) -> Self:
        """Learn from normal clips."""

    def anomaly_score(self, embedding: Tensor) -> Tensor:
        """Return (M,) float32; higher is more anomalous."""

    def leave_one_out(self) -> Tensor:
        """Return (N,) float32: each reference scored by others, without whatever it gave rise to.

        Neighbours leave out that one reference; models are fitted again without its fold, one of
        ten at most.
        """

    def nearest(self, embedding: Tensor, k: int) -> tuple[Tensor, Tensor]:
        """Return indices (M, k) of the nearest references, nearest first, and their distances."""

    def decompose(self, embedding: Tensor) -> Decomposition | None:
        """Return one clip's score as a sum; None where it is none."""

    def state_dict(self) -> dict[str, Tensor]:
        """Return what `fit` learned."""

    def load_state_dict(self, state: Mapping[str, Tensor]) -> Self:
        """Take over what another detector's `state_dict` returned."""


class ReferenceDetector:
    """A detector that keeps its references, in the order of their domains.

    A subclass has `_learn`, `_score` and `leave_one_out`, and names in `_learned` what of its state
    is more than references.

    Args:
        metric: Of `nearest`, and of the subclass where it measures distances.
        views: The views that are scored, counted from 0 as the embedding has them; None takes all.
            Near-only or far-only scores of one embedding of both microphones come from here.
    """

    def __init__(self, *, metric: Metric, views: Sequence[int] | None) -> None:
        check_choice("metric", metric, get_args(Metric))
        if views is not None and (
            not views or len(set(views)) < len(views) or any(view < 0 for view in views)
        ):
            raise ValueError(f"views={list(views)} must name views from 0 on, each once.")
        self.metric: Metric = metric
        self.views = None if views is None else list(views)
        self.references_: Tensor | None = None  # (N, views, bands, size), unit vectors for cosine
        self.domain_ids_: Tensor | None = None  # (N,) int64, ascending
        self.rows_: Tensor | None = None  # (N,) int64: which of the clips given to `fit`
        self._index: ReferenceIndex | None = None  # of whole clips, for `nearest`

    def fit(self, embedding: Tensor, *, domains: Sequence[str | None] | None = None) -> Self:
        """Learn from normal clips.

        Args:
            embedding: (N, views, bands, size), N >= 1.
            domains: N times "source", "target" or None (unknown); None makes one pool.

        Raises:
            ValueError: A wrong shape, a value that is not finite, another number of domains, or a
                name that is no domain.
        """
        embedding = self._scored_views(checked(embedding))
        if not len(embedding):
            raise ValueError(
                f"fit got no clips. Give {type(self).__name__} one normal clip or more."
            )
        names = [None] * len(embedding) if domains is None else list(domains)
        if len(names) != len(embedding):
            raise ValueError(
                f"fit got {len(embedding)} clips but {len(names)} domains. Give one per clip, "
                "None where it is unknown."
            )
        if unknown := sorted({str(name) for name in names if name not in DOMAIN_IDS}):
            raise ValueError(f"{unknown} are no domains. Give 'source', 'target' or None.")
        ids = torch.tensor([DOMAIN_IDS[name] for name in names])
        self._keep(prepared(embedding, self.metric), ids, torch.arange(len(ids)))
        self._learn()
        return self

    def anomaly_score(self, embedding: Tensor) -> Tensor:
        """Return (M,) float32; higher is more anomalous.

        Args:
            embedding: (M, views, bands, size).

        Raises:
            NotFittedError: `fit` was not called.
            ValueError: Views, bands or size differ from the references', or a value is not finite.
        """
        query = self._query(embedding)
        scores = [self._score(block).float() for block in query.split(QUERY_BLOCK)]
        return torch.cat(scores) if len(query) else torch.empty(0)

    def nearest(self, embedding: Tensor, k: int) -> tuple[Tensor, Tensor]:
        """Return the references nearest to each clip, of all domains, nearest first.

        These are the kept references themselves, by `metric`, also where the score is not a
        distance between clips: they are what a clip can be compared with by ear.

        Args:
            embedding: (M, views, bands, size).
            k: How many; all references if there are fewer.

        Returns:
            Indices into the clips given to `fit`, (M, k) int64, and distances, (M, k) float32. A
            distance is the mean over views and bands for that one reference.
        """
        references, _, rows = self._kept()
        if k < 1:
            raise ValueError(f"k={k} must be 1 or more.")
        if self._index is None:
            self._index = ReferenceIndex(references, self.metric)
        found, distance = self._index.nearest(self._query(embedding), k)
        return rows[found], distance.float()

    def comparable(self, embedding: Tensor) -> Tensor:
        """Return clips as `references_` are: the scored views, of length 1 where those are."""
        return prepared(self._query(embedding), self.metric)

    def decompose(self, embedding: Tensor) -> Decomposition | None:
        """Return one clip's score as a sum over terms, views and bands.

        Args:
            embedding: (1, views, bands, size).

        Returns:
            None where the score is no such sum: by LOF, by a mixture, with densities or z-scores;
            and for an embedding of length 0, which has no direction.
        """
        if len(self._query(embedding)) != 1:
            raise ValueError(f"decompose got {len(embedding)} clips. Give one: embedding[:1].")
        # Not as the score sees it, in float32: so the sum is exact in float64.
        part = self._decompose(self._scored_views(embedding.detach().cpu().double()))
        if part is None or self.views is None:
            return part
        shape = (len(part.origin), embedding.shape[1], *part.origin.shape[2:])
        whole = Decomposition(part.origin.new_zeros(shape), part.origin.new_zeros(shape))
        whole.origin[:, self.views] = part.origin
        whole.direction[:, self.views] = part.direction
        return whole

    def state_dict(self) -> dict[str, Tensor]:
        """Return the references, the id of each one's domain, its row in `fit`, and the rest."""
        references, domain_ids, rows = self._kept()
        kept = {"references": references, "domain_ids": domain_ids, "rows": rows}
        return kept | {name: getattr(self, f"{name}_") for name in self._learned()}

    def load_state_dict(self, state: Mapping[str, Tensor]) -> Self:
        """Take over the state of another detector with the same options.

        Raises:
            ValueError: Something is missing, or does not belong to these references.
        """
        missing = {"references", "domain_ids", *self._learned()} - set(state)
        if missing:
            raise ValueError(
                f"A {type(self).__name__}'s state lacks {sorted(missing)}; got {sorted(state)}. "
                "Load it with the options it was fitted with."
            )
        references = checked(state["references"])
        ids = state["domain_ids"].long().cpu()
        rows = state.get("rows", torch.arange(len(references))).long().cpu()
        if ids.shape != (len(references),) or rows.shape != ids.shape:
            raise ValueError(
                f"domain_ids {tuple(ids.shape)} and rows {tuple(rows.shape)} must hold one number "
                f"for each of the {len(references)} references."
            )
        self._keep(references, ids, rows)
        for name in self._learned():
            setattr(self, f"{name}_", state[name].cpu())
        self._loaded()
        return self

    def _learn(self) -> None:
        """Learn from the references that are kept."""
        raise NotImplementedError

    def _score(self, query: Tensor) -> Tensor:
        """Return (M,) float64 for one block of checked clips."""
        raise NotImplementedError

    def _decompose(self, query: Tensor) -> Decomposition | None:  # noqa: ARG002  a subclass may
        """Return the sum that one clip's score is, of its scored views in float64."""
        return None

    def _learned(self) -> list[str]:
        """Return the names of what `_learn` leaves behind, each an attribute with a final _."""
        return []

    def _loaded(self) -> None:
        """Build what follows from a state."""

    def _keep(self, references: Tensor, domain_ids: Tensor, rows: Tensor) -> None:
        """Keep references in the order of their domains, so that a domain is one slice."""
        if (domain_ids.diff() < 0).any():
            order = domain_ids.sort(stable=True).indices
            references, domain_ids, rows = references[order], domain_ids[order], rows[order]
        self.references_, self.domain_ids_, self.rows_ = references, domain_ids, rows
        self._index = None

    def _kept(self) -> tuple[Tensor, Tensor, Tensor]:
        """Return references, domain ids and rows, or raise NotFittedError."""
        if self.references_ is None or self.domain_ids_ is None or self.rows_ is None:
            raise NotFittedError(
                f"{type(self).__name__} has no references. Call fit with embeddings of normal "
                "clips first."
            )
        return self.references_, self.domain_ids_, self.rows_

    def _two_or_more(self) -> None:
        """Raise ValueError unless a reference can be left out."""
        if len(self._kept()[0]) < 2:
            raise ValueError(
                "leave_one_out needs two references or more, got 1. Fit on more normal clips."
            )

    def _query(self, embedding: Tensor) -> Tensor:
        """Return clips to be scored, checked against the references."""
        references, _, _ = self._kept()
        embedding = self._scored_views(checked(embedding))
        if embedding.shape[1:] != references.shape[1:]:
            raise ValueError(
                f"An embedding of (views, bands, size) {tuple(embedding.shape[1:])} cannot be "
                f"compared with references of {tuple(references.shape[1:])}. Extract both with the "
                "same model."
            )
        return embedding

    def _scored_views(self, embedding: Tensor) -> Tensor:
        if self.views is None:
            return embedding
        if max(self.views) >= embedding.shape[1]:
            raise ValueError(
                f"views={self.views} are scored, but the embedding has {embedding.shape[1]} views, "
                "counted from 0. Extract it with the layers and channels they name."
            )
        return embedding[:, self.views]

    def _parts(self) -> list[tuple[int, int]]:
        """Return every (view, band)."""
        _, views, bands, _ = self._kept()[0].shape
        return [(view, band) for view in range(views) for band in range(bands)]


def difference(clip: Tensor, references: Tensor, metric: Metric) -> Decomposition | None:
    """Return the distances of one vector from several as sums, for `Decomposition`.

    With unit vectors z and r, 1 - cos = |z - r|^2 / 2, so that each distance is the product of
    z - r with a multiple of itself.

    Args:
        clip: (size,).
        references: (n, size).
        metric: Of the distances.

    Returns:
        (n, size) each; None for a clip of length 0 where lengths do not count.
    """
    clip, references = clip.double(), references.double()
    length = clip.new_ones(())
    if metric != "euclidean":
        length = clip.norm()
        if not length:
            return None
        references = length * torch.nn.functional.normalize(references, dim=-1)
    away = clip - references  # (n, size), of the clip's scale
    if metric == "cosine":
        return Decomposition(references, away / (2 * length**2))
    distance = away.norm(dim=-1, keepdim=True)
    return Decomposition(references, (away / (length * distance)).where(distance > 0, 0.0))


def checked(embedding: Tensor) -> Tensor:
    """Return embeddings as float32 on the CPU, or raise ValueError."""
    embedding = torch.as_tensor(embedding).detach().float().cpu()
    if embedding.ndim != 4:
        raise ValueError(
            f"An embedding of shape {tuple(embedding.shape)} is not (clips, views, bands, size). "
            "Give what AsdModel returns, also for one clip: embedding[None]."
        )
    for number, block in enumerate(embedding.split(REFERENCE_BLOCK)):
        wrong = (~block.isfinite()).flatten(1).any(dim=1).nonzero()[:5, 0]
        if len(wrong):
            clips = (number * REFERENCE_BLOCK + wrong).tolist()
            raise ValueError(
                f"Embeddings of clips {clips} hold NaN or infinite values. Check these recordings "
                "for such samples."
            )
    return embedding


def check_choice(name: str, value: object, choices: Collection[object]) -> None:
    """Raise ValueError unless an option has one of its values."""
    if value not in choices:
        listed = ", ".join(repr(choice) for choice in choices)
        raise ValueError(f"{name}={value!r} is not one of {listed}.")


def check_at_least(name: str, value: float | None, least: float) -> None:
    """Raise ValueError if an option is too small, or no whole number where `least` is one.

    None stands for no value.
    """
    kind = "a whole number" if isinstance(least, int) else "a number"
    right = isinstance(value, int if isinstance(least, int) else (int, float))
    if value is not None and not (right and value >= least):
        raise ValueError(f"{name}={value!r} must be {kind}, {least} or more.")


def content_order(clips: Tensor) -> Tensor:
    """Return the indices (N,) that sort clips by their values.

    What is drawn for clips in this order does not depend on the order in which they came.
    """
    content = [clip.contiguous().numpy().tobytes() for clip in clips]
    return torch.tensor(sorted(range(len(content)), key=content.__getitem__), dtype=torch.int64)


__all__ = [
    "DOMAIN_IDS",
    "QUERY_BLOCK",
    "Decomposition",
    "Detector",
    "NotFittedError",
    "ReferenceDetector",
    "check_at_least",
    "check_choice",
    "checked",
    "content_order",
    "difference",
]

"""Proxy classes: what the encoder learns to tell apart where anomalies are unknown."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Self

import numpy as np
from numpy.typing import NDArray
from scipy.optimize import linear_sum_assignment
from sklearn.cluster import KMeans
from sklearn.metrics import silhouette_score

from nearfar.embeddings import EmbeddingTable

PARTS = ("machine", "attributes", "domain")  # the usual ones
KNOWN_PARTS = (*PARTS, "machine_type", "channel")
# The objectives of AudioCC, DCASE 2026 Task 2 technical report; a machine's name holds its section.
PART_SETS = {
    "section": ("machine",),
    "attribute": ("machine", "attributes"),
    "composite": ("machine", "attributes", "domain"),
}


@dataclass(frozen=True)
class ProxyLabels:
    """The proxy classes of training clips: machine x attributes x domain, or other parts.

    Attributes:
        class_names: Sorted; the position of a name is its label.
        labels: (N,) int64, the class of each training clip.
        without_attributes: (C,) True where all clips of a class are of machines without attributes.
    """

    class_names: tuple[str, ...]
    labels: NDArray[np.int64]
    without_attributes: NDArray[np.bool_]

    @classmethod
    def from_clips(
        cls,
        clips: Sequence[Mapping[str, Any]],
        *,
        parts: Sequence[str] = PARTS,
        pseudo_attributes: Sequence[str | None] | None = None,
    ) -> Self:
        """Number the classes that occur in training clips.

        Args:
            clips: Rows with the columns named in `parts`, and `machine` and `attributes`. Where
                one clip trains several channels, it is here once for each, with the column
                `channel`.
            parts: Columns that make a class, any of `KNOWN_PARTS`, or a name of `PART_SETS` for
                several; an unknown domain counts as one.
            pseudo_attributes: (N,) from `pseudo_attributes()`; where not None they stand in for
                the clip's own attributes.

        Raises:
            ValueError: An unknown part, no clips, or an anomaly among them.
        """
        parts = columns_of(parts)
        if not clips:
            raise ValueError("There are no training clips to make proxy classes from.")
        anomalies = [clip["file_name"] for clip in clips if clip["condition"] == "anomaly"]
        if anomalies:
            raise ValueError(f"{anomalies[0]} is an anomaly: training sees normal clips only.")
        replaced = pseudo_attributes or [None] * len(clips)
        names = []
        for clip, pseudo in zip(clips, replaced, strict=True):
            values = dict(clip) | ({} if pseudo is None else {"attributes": pseudo})
            names.append("|".join(str(values[part] or "-") for part in parts))
        class_names, labels = np.unique(names, return_inverse=True)
        described = {clip["machine"] for clip in clips if clip["attributes"]}
        bare = np.ones(len(class_names), dtype=bool)
        bare[labels[[clip["machine"] in described for clip in clips]]] = False
        return cls(tuple(class_names.tolist()), labels.astype(np.int64), bare)

    @property
    def num_classes(self) -> int:
        """How many classes there are."""
        return len(self.class_names)


def columns_of(parts: Sequence[str]) -> tuple[str, ...]:
    """Return the columns that `parts` name, each once, or raise ValueError."""
    if unknown := sorted(set(parts) - set(KNOWN_PARTS) - set(PART_SETS)):
        raise ValueError(
            f"label_parts {unknown} are not among {list(KNOWN_PARTS)}, nor do they name several of "
            f"them, as {list(PART_SETS)} do."
        )
    return tuple(dict.fromkeys(name for part in parts for name in PART_SETS.get(part, (part,))))


def pseudo_attributes(
    table: EmbeddingTable,
    *,
    num_clusters: Sequence[int] = (8,),
    min_clips: int = 4,
    seed: int = 0,
) -> list[str | None]:
    """Cluster the clips of machines without attributes, in place of attributes.

    k-means on unit-length embeddings of a frozen encoder, for each machine and domain apart, so
    that a domain of ten clips is not swallowed by one of a thousand; such a small domain gets as
    many clusters as leave `min_clips` each, at least one.

    Args:
        table: Embeddings of the training clips.
        num_clusters: Clusters per machine and domain, at most. Of several candidates the one with
            the best silhouette (Rousseeuw, 1987) is taken, for each machine and domain.
        min_clips: Clips that a cluster holds in the mean, at least.
        seed: Of k-means.

    Returns:
        (N,) "pseudo_<cluster>", or None for a clip of a machine that has attributes.

    Raises:
        ValueError: A candidate is no number of clusters.
    """
    if not num_clusters or min(num_clusters) < 1:
        raise ValueError(
            f"num_pseudo_labels={list(num_clusters)} must name one or more numbers from 1 on."
        )
    pseudo: list[str | None] = [None] * len(table)
    for rows in groups_without_attributes(table):
        largest = max(1, len(rows) // min_clips)
        candidates = sorted({min(k, largest) for k in num_clusters})
        vectors = _directions(table, rows)
        clusterings = [_k_means(vectors, k, seed) for k in candidates]
        best = clusterings[0]
        if len(candidates) > 1:
            best = max(clusterings, key=lambda clusters: _silhouette(vectors, clusters))
        for row, cluster in zip(rows, best, strict=True):
            pseudo[row] = f"pseudo_{cluster}"
    return pseudo


def renewed_labels(
    table: EmbeddingTable, labels: NDArray[np.int64], *, seed: int = 0
) -> NDArray[np.int64]:
    """Cluster the clips of machines without attributes anew, by what an encoder has learnt.

    Each machine and domain keeps its classes: there are as many clusters, and each takes the class
    with most of whose clips it shares (Hungarian method), so that a head's centres keep their
    meaning. Other clips keep their class.

    Args:
        table: Embeddings of the N training clips.
        labels: (channels * N,) classes so far, those of one channel after another.
        seed: Of k-means.

    Returns:
        (channels * N,), no class that was not there.
    """
    first = labels[: len(table)]
    renewed = first.copy()
    for rows in groups_without_attributes(table):
        classes = np.unique(first[rows])
        clusters = _k_means(_directions(table, rows), len(classes), seed)
        found = np.unique(clusters)  # fewer than classes where clips are alike to the bit
        shared = np.array(
            [[np.sum((clusters == k) & (first[rows] == c)) for c in classes] for k in found]
        )
        for cluster, place in zip(*linear_sum_assignment(shared, maximize=True), strict=True):
            renewed[rows[clusters == found[cluster]]] = classes[place]
    blocks = labels.reshape(-1, len(table))
    return np.concatenate([_renamed(first, block)[renewed] for block in blocks])


def groups_without_attributes(table: EmbeddingTable) -> list[NDArray[np.int64]]:
    """Return the rows of each machine and domain whose machine has no attributes."""
    with_attributes = {
        machine for machine, text in zip(table.machines, table.attributes, strict=True) if text
    }
    groups = dict.fromkeys(
        (machine, domain)
        for machine, domain in zip(table.machines, table.domains, strict=True)
        if machine not in with_attributes
    )
    return [
        np.flatnonzero((table.machines == machine) & (table.domains == domain))
        for machine, domain in groups
    ]


def _directions(table: EmbeddingTable, rows: NDArray[np.int64]) -> NDArray[np.float64]:
    vectors = table.embedding[rows].astype(np.float64)
    vectors /= np.maximum(np.linalg.norm(vectors, axis=-1, keepdims=True), 1e-12)
    return vectors.reshape(len(rows), -1)


def _k_means(vectors: NDArray[np.float64], num_clusters: int, seed: int) -> NDArray[np.int32]:
    found: NDArray[np.int32] = KMeans(
        n_clusters=num_clusters, n_init=4, random_state=seed
    ).fit_predict(vectors)
    return found


def _silhouette(vectors: NDArray[np.float64], clusters: NDArray[np.int32]) -> float:
    """Return the mean silhouette; of a single cluster, which has none, 0: as good as chance."""
    if not 1 < len(np.unique(clusters)) < len(vectors):
        return 0.0
    return float(silhouette_score(vectors, clusters))


def _renamed(first: NDArray[np.int64], block: NDArray[np.int64]) -> NDArray[np.int64]:
    """Return, for each class of the first channel, the class of the same clips in another."""
    names = np.zeros(first.max() + 1, dtype=np.int64)
    names[first] = block
    return names

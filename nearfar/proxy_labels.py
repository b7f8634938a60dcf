"""Proxy classes: what the encoder learns to tell apart where anomalies are unknown."""

from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Self

import numpy as np
from numpy.typing import NDArray
from sklearn.cluster import KMeans

from nearfar.embeddings import EmbeddingTable

PARTS = ("machine", "attributes", "domain")


@dataclass(frozen=True)
class ProxyLabels:
    """The proxy classes of training clips: machine x attributes x domain, or some of these.

    Attributes:
        class_names: Sorted; the position of a name is its label.
        labels: (N,) int64, the class of each training clip.
    """

    class_names: tuple[str, ...]
    labels: NDArray[np.int64]

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
            clips: Rows with the columns named in `parts`.
            parts: Columns that make a class, any of `PARTS`; an unknown domain counts as one.
            pseudo_attributes: (N,) from `pseudo_attributes()`; where not None they stand in for
                the clip's own attributes.

        Raises:
            ValueError: An unknown part, no clips, or an anomaly among them.
        """
        if unknown := sorted(set(parts) - set(PARTS)):
            raise ValueError(f"label_parts {unknown} are not among {list(PARTS)}.")
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
        return cls(tuple(class_names.tolist()), labels.astype(np.int64))

    @property
    def num_classes(self) -> int:
        """How many classes there are."""
        return len(self.class_names)


def pseudo_attributes(
    table: EmbeddingTable, *, num_clusters: int = 8, min_clips: int = 4, seed: int = 0
) -> list[str | None]:
    """Cluster the clips of machines without attributes, in place of attributes.

    k-means on unit-length embeddings of a frozen encoder, for each machine and domain apart, so
    that a domain of ten clips is not swallowed by one of a thousand; such a small domain gets as
    many clusters as leave `min_clips` each, at least one.

    Args:
        table: Embeddings of the training clips.
        num_clusters: Clusters per machine and domain, at most.
        min_clips: Clips that a cluster holds in the mean, at least.
        seed: Of k-means.

    Returns:
        (N,) "pseudo_<cluster>", or None for a clip of a machine that has attributes.
    """
    pseudo: list[str | None] = [None] * len(table)
    with_attributes = {
        machine for machine, text in zip(table.machines, table.attributes, strict=True) if text
    }
    groups = Counter(
        (machine, domain)
        for machine, domain in zip(table.machines, table.domains, strict=True)
        if machine not in with_attributes
    )
    for (machine, domain), size in groups.items():
        rows = np.flatnonzero((table.machines == machine) & (table.domains == domain))
        vectors = table.embedding[rows].astype(np.float64)
        vectors /= np.maximum(np.linalg.norm(vectors, axis=-1, keepdims=True), 1e-12)
        clusters = KMeans(
            n_clusters=max(1, min(num_clusters, size // min_clips)), n_init=4, random_state=seed
        ).fit_predict(vectors.reshape(len(rows), -1))
        for row, cluster in zip(rows, clusters, strict=True):
            pseudo[row] = f"pseudo_{cluster}"
    return pseudo

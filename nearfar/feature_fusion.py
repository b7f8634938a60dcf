"""Feature fusion: the embeddings that several systems make of a clip, joined into one."""

import math
from collections.abc import Sequence

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from nearfar.embeddings import EmbeddingTable

EPSILON = 1e-12  # of a length, so that a zero embedding stays zero


def joined_table(tables: Sequence[EmbeddingTable]) -> EmbeddingTable:
    """Return the joined embeddings (N, 1, 1, size) of the same N clips by several members.

    Every view and band of a member is brought to length 1, and divided by the square root of their
    number. So each member has length 1 whatever its size, and the cosine of two joined embeddings
    is the mean over members of the mean of their views' and bands' cosines.

    Args:
        tables: One per member.

    Raises:
        ValueError: They are not of the same clips in the same order.
    """
    first = tables[0]
    for table in tables[1:]:
        same = (
            len(table) == len(first)
            and (table.machines == first.machines).all()
            and (table.file_names == first.file_names).all()
        )
        if not same:
            raise ValueError(
                f"Members embedded different clips ({len(first)} and {len(table)}). Embed the same "
                "clips with all of them."
            )
    joined = joined_embeddings([torch.from_numpy(table.embedding) for table in tables])
    columns = {name: column for name, column in vars(first).items() if name != "embedding"}
    vectors: NDArray[np.float32] = joined.numpy()
    return EmbeddingTable(embedding=vectors, **columns)


def joined_embeddings(embeddings: Sequence[Tensor]) -> Tensor:
    """Return (N, 1, 1, size) float32 of the members' (N, views, bands, size), as `joined_table`."""
    parts = []
    for embedding in embeddings:
        lengths = embedding.norm(dim=-1, keepdim=True).clamp_min(EPSILON)
        parts.append((embedding / lengths).flatten(1) / math.sqrt(math.prod(embedding.shape[1:3])))
    return torch.cat(parts, dim=1)[:, None, None].float()


def joined_fingerprint(fingerprints: Sequence[Tensor | None]) -> Tensor:
    """Return the fingerprint (1, 1, size) of joined members, from their own (views, bands, size).

    Raises:
        ValueError: A member has none.
    """
    known = [one for one in fingerprints if one is not None]
    if len(known) < len(fingerprints):
        raise ValueError("A member's reference bank has no fingerprint. Train the member anew.")
    return joined_embeddings([one[None] for one in known])[0]

"""Joined embeddings: each member counts alike, whatever its size, views and bands."""

import numpy as np
import pytest
import torch

from nearfar.embeddings import EmbeddingTable
from nearfar.feature_fusion import joined_embeddings, joined_fingerprint, joined_table


def table(shape: tuple[int, ...], *, seed: int, names: str = "abcd") -> EmbeddingTable:
    rng = np.random.default_rng(seed)
    clips = [
        {
            "file_name": name,
            "machine": "2026/fan/00",
            "domain": "source",
            "condition": "normal",
            "attributes": "",
        }
        for name in names
    ]
    scale = 10.0 ** rng.uniform(-2, 2, (len(names), *shape[:2], 1))  # lengths are of no account
    vectors = (scale * rng.normal(size=(len(names), *shape))).astype(np.float32)
    return EmbeddingTable.from_clips(vectors, clips)


def cosine(a: np.ndarray, b: np.ndarray) -> float:
    return float(a @ b / np.sqrt((a @ a) * (b @ b)))


def test_the_cosine_of_joined_embeddings_is_the_mean_of_the_members_mean_cosines() -> None:
    members = [table((3, 2, 5), seed=0), table((1, 1, 40), seed=1)]
    joined = joined_table(members).embedding.astype(np.float64)
    assert joined.shape == (4, 1, 1, 3 * 2 * 5 + 40)
    for i in range(4):
        assert np.linalg.norm(joined[i]) == pytest.approx(np.sqrt(2), rel=1e-6)
        for j in range(4):
            expected = 0.0
            for member in members:
                _, views, bands, _ = member.embedding.shape
                vectors = member.embedding.astype(np.float64)
                for view in range(views):
                    for band in range(bands):
                        one = cosine(vectors[i, view, band], vectors[j, view, band])
                        expected += one / (views * bands) / len(members)
            assert cosine(joined[i, 0, 0], joined[j, 0, 0]) == pytest.approx(expected, abs=1e-6)


def test_a_joined_clip_is_the_same_alone_and_keeps_what_is_known_of_it() -> None:
    members = [table((2, 1, 3), seed=0), table((1, 1, 4), seed=1)]
    joined = joined_table(members)
    alone = joined_table([member.take([2]) for member in members])
    np.testing.assert_array_equal(alone.embedding[0], joined.embedding[2])
    assert alone.file_names.tolist() == ["c"]


def test_an_embedding_of_zeros_stays_zero() -> None:
    joined = joined_embeddings([torch.zeros(1, 1, 1, 3), torch.ones(1, 1, 1, 1)])
    assert joined.flatten().tolist() == [0.0, 0.0, 0.0, 1.0]


def test_the_fingerprint_of_a_fusion_is_that_of_its_members_joined() -> None:
    prints = [torch.randn(2, 1, 3), torch.randn(1, 1, 4)]
    found = joined_fingerprint(prints)
    assert torch.equal(found, joined_embeddings([one[None] for one in prints])[0])
    assert not torch.allclose(found, joined_fingerprint([torch.randn(2, 1, 3), prints[1]]))
    with pytest.raises(ValueError, match="no fingerprint"):
        joined_fingerprint([prints[0], None])


@pytest.mark.parametrize("names", ["abc", "abdc"])
def test_members_that_embedded_different_clips_are_refused(names: str) -> None:
    with pytest.raises(ValueError, match=r"different clips \(4 and"):
        joined_table([table((1, 1, 3), seed=0), table((1, 1, 3), seed=1, names=names)])

"""Mixtures of clips, each checked against the rule it is drawn by."""

import pytest
import torch

from modeling.coreset import coreset
from modeling.detector_base import DOMAIN_IDS
from modeling.synthetic_references import Mixtures, memmix, smote
from tests.modeling.detector_cases import clips

SOURCE, TARGET = DOMAIN_IDS["source"], DOMAIN_IDS["target"]


def domain_ids(sources: int, targets: int) -> torch.Tensor:
    return torch.tensor([SOURCE] * sources + [TARGET] * targets)


def draw(references, ids, **options) -> Mixtures:
    return smote(
        references,
        ids,
        **{"ratio": 0.5, "num_neighbors": 2, "seed": 0, "metric": "euclidean"} | options,
    )


def test_smote_fills_the_target_domain_to_its_share_of_the_source_count() -> None:
    """As published: 990 source clips and 0.25 give 248 target members, 10 of them recorded."""
    references = torch.randn(1000, 1, 1, 2, generator=torch.Generator().manual_seed(0))
    mixtures = draw(references, domain_ids(990, 10), ratio=0.25, num_neighbors=3)
    assert len(mixtures.parents) == len(mixtures.shares) == 248 - 10
    assert draw(references[:50], domain_ids(40, 10), ratio=0.25).parents.shape == (0, 2)


@pytest.mark.parametrize("metric", ["cosine", "euclidean"])
def test_a_smote_mixture_lies_between_a_target_clip_and_one_of_its_nearest(metric) -> None:
    references = clips(40, seed=0)
    if metric == "cosine":
        references = torch.nn.functional.normalize(references, dim=-1)
    mixtures = draw(references, domain_ids(30, 10), metric=metric, ratio=2.0)
    assert ((mixtures.shares > 0) & (mixtures.shares <= 1)).all()
    for first, second in mixtures.parents.tolist():
        assert first >= 30
        away = {
            j: sum(
                1 - float(a @ b) if metric == "cosine" else float((a - b).norm())
                for a, b in zip(
                    references[first].flatten(0, 1), references[j].flatten(0, 1), strict=True
                )
            )
            for j in range(30, 40)
            if j != first
        }
        assert second in sorted(away, key=away.get)[:2]
    embedding = mixtures.embed(references, metric)
    for i, ((first, second), u) in enumerate(zip(mixtures.parents, mixtures.shares, strict=True)):
        due = references[second] + u * (references[first] - references[second])
        if metric == "cosine":
            due = due / due.norm(dim=-1, keepdim=True)
        torch.testing.assert_close(embedding[i], due)


def test_target_clips_take_turns_and_every_neighbour_is_drawn() -> None:
    mixtures = draw(clips(60, seed=0), domain_ids(50, 10), ratio=4.0)
    counts = mixtures.parents[:, 0].bincount(minlength=60)
    assert counts[50:].tolist() == [19] * 10
    assert all(
        len(set(mixtures.parents[mixtures.parents[:, 0] == i, 1].tolist())) == 2
        for i in range(50, 60)
    )
    assert abs(mixtures.shares.mean() - 0.5) < 4 * (1 / 12 / 190) ** 0.5


def test_smote_is_repeatable_and_another_seed_draws_others() -> None:
    references, ids = clips(40, seed=0), domain_ids(30, 10)
    once, again, other = (draw(references, ids, seed=seed) for seed in (0, 0, 1))
    assert torch.equal(once.shares, again.shares)
    assert torch.equal(once.parents, again.parents)
    assert not torch.equal(once.shares, other.shares)


def test_one_target_clip_has_nothing_to_be_mixed_with_and_two_have_each_other() -> None:
    assert len(draw(clips(31, seed=0), domain_ids(30, 1)).parents) == 0
    mixtures = draw(clips(32, seed=0), domain_ids(30, 2), num_neighbors=3)
    assert {tuple(sorted(pair)) for pair in mixtures.parents.tolist()} == {(30, 31)}
    assert len(draw(clips(30, seed=0), domain_ids(30, 0)).parents) == 0


def test_memmix_mixes_each_target_clip_with_its_nearest_source_clips() -> None:
    references, ids = clips(33, seed=0), domain_ids(30, 3)
    mixtures = memmix(references, ids, num_neighbors=4, metric="euclidean")
    assert len(mixtures.parents) == 3 * 4
    for target in (30, 31, 32):
        away = (references[:30] - references[target]).norm(dim=-1).mean(dim=(1, 2))
        chosen = mixtures.parents[mixtures.parents[:, 0] == target, 1]
        assert set(chosen.tolist()) == set(away.argsort()[:4].tolist())
    (first, second), *_ = mixtures.parents
    torch.testing.assert_close(
        mixtures.embed(references, "euclidean")[0],
        0.9 * references[first] + 0.1 * references[second],
    )
    assert len(memmix(references, ids, num_neighbors=990, metric="cosine").parents) == 3 * 30
    assert len(memmix(references[:30], ids[:30], num_neighbors=4, metric="cosine").parents) == 0


def plain_k_centers(points: list[float], size: int) -> list[int]:
    mean = sum(points) / len(points)
    chosen = [min(range(len(points)), key=lambda i: abs(points[i] - mean))]
    while len(chosen) < size:
        chosen.append(
            max(
                (i for i in range(len(points)) if i not in chosen),
                key=lambda i: min(abs(points[i] - points[c]) for c in chosen),
            )
        )
    return sorted(chosen)


def test_a_coreset_is_what_the_greedy_rule_chooses() -> None:
    points = torch.randn(40, generator=torch.Generator().manual_seed(0)).double()
    references = points.float()[:, None, None, None]
    for size in (1, 2, 7, 39):
        chosen = coreset(references, domain_ids(40, 0), size)
        assert chosen.tolist() == plain_k_centers(references.flatten().tolist(), size)


def test_a_coreset_of_duplicates_has_its_size() -> None:
    references = clips(3, seed=0).repeat(10, 1, 1, 1)
    assert len(coreset(references, domain_ids(30, 0), 8).unique()) == 8
    ids = domain_ids(25, 5)
    assert coreset(references, ids, 100).tolist() == list(range(30))

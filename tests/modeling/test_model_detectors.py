"""Models of the references, equal to scikit-learn's or derived again."""

import sys

import numpy as np
import pytest
import torch
from sklearn.cluster import KMeans
from sklearn.covariance import LedoitWolf
from sklearn.mixture import GaussianMixture
from sklearn.neighbors import LocalOutlierFactor

from modeling.detector_base import content_order
from modeling.detectors import GmmDetector, KmeansDetector, LofDetector, MahalanobisDetector
from modeling.mahalanobis_detector import shrunk_covariance

SOURCES, TARGETS = 60, 10
DOMAINS = ["source"] * SOURCES + ["target"] * TARGETS


def flat_clips(count: int, *, seed: int, size: int = 12) -> torch.Tensor:
    """Return (count, 1, 1, size): correlated dimensions of unequal variance around a point."""
    generator = torch.Generator().manual_seed(seed)
    mixing = torch.randn(size, size, generator=torch.Generator().manual_seed(99))
    return (3.0 + torch.randn(count, size, generator=generator) @ mixing)[:, None, None]


@pytest.fixture
def references() -> torch.Tensor:
    embedding = flat_clips(SOURCES + TARGETS, seed=0)
    embedding[SOURCES:] += 2.0
    return embedding


@pytest.fixture
def queries() -> torch.Tensor:
    return torch.cat([flat_clips(8, seed=1), 3 * flat_clips(2, seed=2)])


def array(clips: torch.Tensor) -> np.ndarray:
    return clips.flatten(1).double().numpy()


def close(scores: torch.Tensor, expected: np.ndarray, **tolerance: float) -> None:
    due = torch.from_numpy(np.asarray(expected)).float()
    torch.testing.assert_close(scores, due, **tolerance)


@pytest.mark.parametrize("per_domain", [True, False])
def test_mahalanobis_is_the_smaller_of_ledoit_and_wolfs(references, queries, per_domain) -> None:
    detector = MahalanobisDetector(per_domain=per_domain).fit(references, domains=DOMAINS)
    x, q = array(references), array(queries)
    groups = [x[:SOURCES], x[SOURCES:]] if per_domain else [x]
    distances = []
    for group in groups:
        covariance = LedoitWolf().fit(group)
        residual = q - covariance.location_
        distances.append(np.einsum("ni,ij,nj->n", residual, covariance.precision_, residual))
    close(detector.anomaly_score(queries), np.min(distances, axis=0), rtol=1e-4, atol=0)


def test_the_target_covariance_is_drawn_towards_the_source(references, queries) -> None:
    detector = MahalanobisDetector(shrink_to="largest").fit(references, domains=DOMAINS)
    source, target = array(references)[:SOURCES], array(references)[SOURCES:]
    simpler = LedoitWolf().fit(source).covariance_
    x = target - target.mean(axis=0)
    covariance = x.T @ x / TARGETS
    error = sum(((np.outer(row, row) - covariance) ** 2).sum() for row in x) / TARGETS**2
    share = min(1.0, error / ((covariance - simpler) ** 2).sum())
    assert 0.05 < share < 1
    distances = []
    for mean, matrix in (
        (source.mean(axis=0), simpler),
        (target.mean(axis=0), (1 - share) * covariance + share * simpler),
    ):
        inverse = np.linalg.inv(matrix)
        distances.append([(q - mean) @ inverse @ (q - mean) for q in array(queries)])
    close(detector.anomaly_score(queries), np.min(distances, axis=0), rtol=1e-4, atol=0)


def test_a_stated_shrinkage_is_taken() -> None:
    clips = torch.tensor([[2.0, 0.0], [-2.0, 0.0], [0.0, 1.0], [0.0, -1.0]], dtype=torch.float64)
    # covariance diag(2, 0.5), mean variance 1.25
    due = torch.diag(torch.tensor([0.75 * 2 + 0.25 * 1.25, 0.75 * 0.5 + 0.25 * 1.25])).double()
    torch.testing.assert_close(shrunk_covariance(clips, shrinkage=0.25), due)


def test_shrinkage_that_helps_ten_clips_hardly_touches_many() -> None:
    few, many = (array(flat_clips(n, seed=3)) for n in (10, 3000))
    truth = LedoitWolf().fit(array(flat_clips(30_000, seed=4))).covariance_

    def error(clips: np.ndarray, **options) -> float:
        return np.linalg.norm(shrunk_covariance(torch.from_numpy(clips), **options).numpy() - truth)

    assert error(few) < error(few, shrinkage=1e-6)
    assert error(many) < 0.2 * error(few)


@pytest.mark.parametrize("normalize_centers", [False, True])
def test_kmeans_is_scikit_learns_centres_and_every_target_clip(
    references, queries, normalize_centers
) -> None:
    detector = KmeansDetector(num_centers=5, normalize_centers=normalize_centers, seed=3)
    detector.fit(references, domains=DOMAINS)
    x = array(references)
    x = (x / np.linalg.norm(x, axis=1, keepdims=True)).astype(np.float32)  # as the bank keeps it
    source = torch.from_numpy(x[:SOURCES])
    ordered = source[content_order(source)].double().numpy()
    centers = KMeans(5, n_init=10, random_state=3).fit(ordered).cluster_centers_
    if normalize_centers:
        centers = centers / np.linalg.norm(centers, axis=1, keepdims=True)
    members = np.concatenate([centers, x[SOURCES:]])
    q = array(queries)
    q = q / np.linalg.norm(q, axis=1, keepdims=True)
    away = ((q[:, None] - members) ** 2).sum(axis=2) / 2
    close(detector.anomaly_score(queries), away.min(axis=1))
    assert detector.anomaly_score(references[SOURCES:]).amax() < 1e-6
    assert detector.anomaly_score(references[:SOURCES]).amin() > 1e-6


@pytest.mark.parametrize("covariance_type", ["diag", "full"])
@pytest.mark.parametrize("per_domain", [True, False])
def test_a_mixture_scores_as_scikit_learns(
    references, queries, covariance_type, per_domain
) -> None:
    options = {"num_components": 3, "covariance_type": covariance_type}
    detector = GmmDetector(**options, regularization=0.1, per_domain=per_domain, seed=1)
    detector.fit(references, domains=DOMAINS)
    groups = [references[:SOURCES], references[SOURCES:]] if per_domain else [references]
    scores = []
    for group in groups:
        clips = group.flatten(1)
        mixture = GaussianMixture(
            3, covariance_type=covariance_type, reg_covar=0.1, random_state=1, max_iter=200
        ).fit(clips[content_order(clips)].double().numpy())
        scores.append(-mixture.score_samples(array(queries)))
    close(detector.anomaly_score(queries), np.min(scores, axis=0))


@pytest.mark.parametrize("metric", ["euclidean", "cosine"])
@pytest.mark.parametrize("num_neighbors", [1, 7, 200])
def test_lof_scores_as_scikit_learns(references, queries, metric, num_neighbors) -> None:
    k = min(num_neighbors, SOURCES + TARGETS - 1)
    detector = LofDetector(num_neighbors=num_neighbors, metric=metric).fit(references)
    lof = LocalOutlierFactor(k, metric=metric, novelty=True, algorithm="brute")
    close(
        detector.anomaly_score(queries), -lof.fit(array(references)).score_samples(array(queries))
    )


def test_lof_is_about_one_inside_and_grows_outside(references) -> None:
    detector = LofDetector(metric="euclidean").fit(references[:SOURCES])
    inside = detector.anomaly_score(flat_clips(30, seed=5))
    assert 0.9 < inside.median() < 1.3
    center = references[:SOURCES].mean(dim=0, keepdim=True)
    away = center + torch.tensor([5.0, 10.0, 20.0])[:, None, None, None] * torch.ones_like(center)
    assert (detector.anomaly_score(away).diff() > 0).all()


def test_a_domain_of_one_joins_the_largest(references, queries) -> None:
    domains = ["source"] * 20 + ["target"] + [None] * 5
    for kind in (MahalanobisDetector, LofDetector, GmmDetector):
        detector = kind(per_domain=True).fit(references[:26], domains=domains)
        joined = kind(per_domain=True).fit(references[:26], domains=["source"] * 21 + [None] * 5)
        torch.testing.assert_close(detector.anomaly_score(queries), joined.anomaly_score(queries))


@pytest.mark.parametrize(
    ("kind", "options", "message"),
    [
        (MahalanobisDetector, {"shrinkage": 0.0}, r"must lie in \(0, 1\]"),
        (MahalanobisDetector, {"shrink_to": "source"}, "shrink_to='source' is not one of"),
        (KmeansDetector, {"num_centers": 0}, "num_centers=0 must be"),
        (GmmDetector, {"num_components": 0}, "num_components=0 must be"),
        (GmmDetector, {"covariance_type": "tied"}, "covariance_type='tied' is not one of"),
        (GmmDetector, {"regularization": 0.0}, "regularization=0.0 must be above 0"),
        (LofDetector, {"num_neighbors": 0}, "num_neighbors=0 must be"),
        (LofDetector, {"metric": "l2"}, "metric='l2' is not one of"),
    ],
)
def test_an_option_without_meaning_is_refused(kind, options, message) -> None:
    with pytest.raises(ValueError, match=message):
        kind(**options)


@pytest.mark.parametrize("kind", [KmeansDetector, GmmDetector])
def test_without_scikit_learn_fitting_says_what_is_missing_and_scoring_works(
    kind, references, queries, monkeypatch
) -> None:
    fitted = kind().fit(references, domains=DOMAINS)
    expected = fitted.anomaly_score(queries)
    for module in ("sklearn", "sklearn.cluster", "sklearn.mixture"):
        monkeypatch.setitem(sys.modules, module, None)
    with pytest.raises(ImportError, match="needs scikit-learn: pip install scikit-learn"):
        kind().fit(references)
    loaded = kind().load_state_dict(fitted.state_dict())
    assert torch.equal(loaded.anomaly_score(queries), expected)


def test_a_state_without_one_of_its_models_is_refused(references) -> None:
    state = MahalanobisDetector().fit(references, domains=DOMAINS).state_dict()
    kept = {name: tensor for name, tensor in state.items() if not name.endswith(".1")}
    with pytest.raises(ValueError, match=r"state lacks the models \[1\]"):
        MahalanobisDetector().load_state_dict(kept)

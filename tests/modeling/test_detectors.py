import itertools

import pytest
import torch
import torch.nn.functional as F

from modeling import detectors
from modeling.detectors import DETECTORS, KnnDetector, NotFittedError

# One set of options per behaviour worth a contract of its own; a new detector belongs here.
CASES = {
    "knn": ("knn", {}),
    "knn, pooled": ("knn", {"per_domain": False, "num_neighbors": 3}),
    "knn, euclidean": ("knn", {"metric": "euclidean", "num_neighbors": 2}),
    "norm": ("norm", {}),
}
DOMAINS = ["source"] * 15 + ["target"] * 4 + [None]


@pytest.fixture
def references() -> torch.Tensor:
    return clips(20, seed=0)


def clips(count: int, *, seed: int) -> torch.Tensor:
    """Return embeddings (count, 2 views, 3 bands, 8) around one point, as normal clips are."""
    generator = torch.Generator().manual_seed(seed)
    return 2.0 + torch.randn(count, 2, 3, 8, generator=generator)


@pytest.fixture(params=CASES.values(), ids=CASES)
def new_detector(request):
    """Return a function that constructs one detector of the registry."""
    name, options = request.param
    return lambda: DETECTORS[name](**options)


@pytest.fixture
def detector(new_detector, references):
    return new_detector().fit(references, domains=DOMAINS)


def test_every_detector_is_held_to_the_contract() -> None:
    assert {name for name, _ in CASES.values()} == set(DETECTORS)


def test_fit_returns_the_detector(new_detector, references) -> None:
    detector = new_detector()
    assert detector.fit(references) is detector


@pytest.mark.parametrize(
    "use",
    [
        lambda detector: detector.anomaly_score(clips(1, seed=1)),
        lambda detector: detector.nearest(clips(1, seed=1), 1),
        lambda detector: detector.leave_one_out(),
        lambda detector: detector.state_dict(),
    ],
    ids=["anomaly_score", "nearest", "leave_one_out", "state_dict"],
)
def test_using_a_detector_before_fitting_says_what_to_do(new_detector, use) -> None:
    with pytest.raises(NotFittedError, match="Call fit"):
        use(new_detector())


def test_a_far_clip_is_more_anomalous_than_a_reference(detector, references) -> None:
    known, unknown = detector.anomaly_score(torch.stack([references[3], -5 * references[3]]))
    assert known < unknown


def test_a_clip_scores_the_same_alone_and_in_any_batch(detector, monkeypatch) -> None:
    batch = clips(7, seed=1)
    together = detector.anomaly_score(batch)
    alone = torch.cat([detector.anomaly_score(clip[None]) for clip in batch])
    one_rounding = {"rtol": 2**-23, "atol": 1e-9}
    torch.testing.assert_close(together, alone, **one_rounding)
    torch.testing.assert_close(detector.anomaly_score(batch.flip(0)).flip(0), alone, **one_rounding)
    # Blocks that bound the memory, smaller than queries and references.
    monkeypatch.setattr(detectors, "QUERY_BLOCK", 3)
    monkeypatch.setattr(detectors, "REFERENCE_BLOCK", 4)
    torch.testing.assert_close(detector.anomaly_score(batch), alone, **one_rounding)


def test_no_clip_gives_no_score(detector) -> None:
    assert detector.anomaly_score(clips(0, seed=1)).shape == (0,)


@pytest.mark.parametrize("dtype", [torch.float64, torch.bfloat16])
def test_scores_are_float32_whatever_comes(detector, dtype) -> None:
    embedding = clips(4, seed=1).to(dtype)
    scores = detector.anomaly_score(embedding)
    assert scores.dtype == torch.float32
    torch.testing.assert_close(scores, detector.anomaly_score(embedding.float()))


def test_the_order_of_the_references_does_not_matter(new_detector, references) -> None:
    order = torch.randperm(20, generator=torch.Generator().manual_seed(1))
    shuffled = new_detector().fit(references[order], domains=[DOMAINS[i] for i in order])
    fitted = new_detector().fit(references, domains=DOMAINS)
    torch.testing.assert_close(
        shuffled.anomaly_score(clips(5, seed=1)), fitted.anomaly_score(clips(5, seed=1))
    )


def test_duplicate_references_bring_nothing_but_closeness(new_detector, references) -> None:
    once = new_detector().fit(references, domains=DOMAINS)
    twice = new_detector().fit(torch.cat([references, references]), domains=DOMAINS * 2)
    queries = clips(5, seed=1)
    assert (twice.anomaly_score(queries) <= once.anomaly_score(queries) + 1e-6).all()
    assert twice.leave_one_out().isfinite().all()
    assert (twice.leave_one_out()[:20] <= once.leave_one_out() + 1e-6).all()


def test_leave_one_out_is_what_the_other_references_say(new_detector, references) -> None:
    detector = new_detector().fit(references, domains=DOMAINS)
    expected = []
    for i in range(20):
        others = [j for j in range(20) if j != i]
        fitted = new_detector().fit(references[others], domains=[DOMAINS[j] for j in others])
        expected.append(fitted.anomaly_score(references[[i]]))
    torch.testing.assert_close(detector.leave_one_out(), torch.cat(expected))


def test_one_reference_alone_cannot_be_left_out(new_detector, references) -> None:
    with pytest.raises(ValueError, match="two references or more"):
        new_detector().fit(references[:1]).leave_one_out()


def test_a_loaded_state_scores_as_the_saved_one(new_detector, detector) -> None:
    state = {name: tensor.clone() for name, tensor in detector.state_dict().items()}
    loaded = new_detector().load_state_dict(state)
    assert torch.equal(
        loaded.anomaly_score(clips(5, seed=1)), detector.anomaly_score(clips(5, seed=1))
    )
    assert torch.equal(loaded.leave_one_out(), detector.leave_one_out())


def test_a_state_of_something_else_is_refused(new_detector) -> None:
    with pytest.raises(ValueError, match="state lacks"):
        new_detector().load_state_dict({"weights": torch.zeros(3)})


def test_the_nearest_reference_of_a_reference_is_itself(detector, references, monkeypatch) -> None:
    monkeypatch.setattr(detectors, "REFERENCE_BLOCK", 7)
    indices, distances = detector.nearest(references, 3)
    assert torch.equal(indices[:, 0], torch.arange(20))
    torch.testing.assert_close(distances[:, 0], torch.zeros(20), atol=1e-5, rtol=0)
    assert (distances.diff(dim=1) >= 0).all()
    assert all(len(set(row)) == 3 for row in indices.tolist())


def test_nearest_gives_no_more_references_than_there_are(detector) -> None:
    indices, distances = detector.nearest(clips(2, seed=1), 99)
    assert indices.shape == distances.shape == (2, 20)
    assert sorted(indices[0].tolist()) == list(range(20))


@pytest.mark.parametrize("value", [torch.nan, torch.inf])
def test_a_value_that_is_not_finite_is_refused_naming_its_clip(detector, value) -> None:
    embedding = clips(3, seed=1)
    embedding[2, 1, 0, 4] = value
    with pytest.raises(ValueError, match=r"clips \[2\] hold NaN or infinite"):
        detector.anomaly_score(embedding)
    with pytest.raises(ValueError, match=r"clips \[2\] hold NaN or infinite"):
        detector.fit(embedding)


def test_an_embedding_of_another_model_is_refused(detector) -> None:
    with pytest.raises(ValueError, match="same model"):
        detector.anomaly_score(torch.zeros(1, 1, 3, 8))


def test_one_embedding_without_its_batch_dimension_is_refused(detector) -> None:
    with pytest.raises(ValueError, match=r"embedding\[None\]"):
        detector.anomaly_score(torch.zeros(2, 3, 8))


def test_domains_of_other_clips_are_refused(new_detector, references) -> None:
    if new_detector().per_domain:
        with pytest.raises(ValueError, match="20 clips but 3 domains"):
            new_detector().fit(references, domains=DOMAINS[:3])


def test_fitting_on_nothing_is_refused(new_detector) -> None:
    with pytest.raises(ValueError, match="no clips"):
        new_detector().fit(clips(0, seed=0))


def plain_knn(query, references, domains, *, num_neighbors, metric):
    """Score one clip as the docstring reads, in plain loops: k is clipped to a domain's size."""
    scores = []
    for domain in set(domains):
        members = [r for r, d in zip(references, domains, strict=True) if d == domain]
        parts = []
        for view, band in itertools.product(range(query.shape[0]), range(query.shape[1])):
            q = query[view, band]
            if metric == "cosine":
                distances = [1 - F.cosine_similarity(q, r[view, band], dim=0) for r in members]
            else:
                distances = [(q - r[view, band]).square().sum().sqrt() for r in members]
            nearest = sorted(float(distance) for distance in distances)[:num_neighbors]
            parts.append(sum(nearest) / len(nearest))
        scores.append(sum(parts) / len(parts))
    return min(scores)


@pytest.mark.parametrize("metric", ["cosine", "euclidean"])
@pytest.mark.parametrize("num_neighbors", [1, 6])
@pytest.mark.parametrize("per_domain", [True, False])
def test_knn_agrees_with_its_formula_in_plain_loops(
    references, metric, num_neighbors, per_domain
) -> None:
    options = {"num_neighbors": num_neighbors, "metric": metric}
    detector = KnnDetector(**options, per_domain=per_domain).fit(references, domains=DOMAINS)
    queries = clips(4, seed=1)
    domains = DOMAINS if per_domain else [None] * 20
    expected = [plain_knn(query, references, domains, **options) for query in queries]
    torch.testing.assert_close(detector.anomaly_score(queries), torch.tensor(expected))


def test_the_norm_is_the_score_itself_where_the_embedding_holds_one() -> None:
    scores = torch.tensor([3.25, 0.1, 1e-30, 7e20])
    detector = DETECTORS["norm"]().fit(torch.ones(2, 1, 1, 1))
    assert torch.equal(detector.anomaly_score(scores[:, None, None, None]), scores)
    views = torch.tensor([[[[3.0, 4.0]], [[0.0, 1.0]]]])  # lengths 5 and 1
    assert DETECTORS["norm"]().fit(views).anomaly_score(views).item() == 3.0


def test_each_domain_answers_for_itself() -> None:
    """Two source clips on each side of the query average worse than the one target clip."""
    points = torch.tensor([[0.0], [10.0], [4.0]])[:, None, None]
    detector = KnnDetector(num_neighbors=2, metric="euclidean")
    detector.fit(points, domains=["source", "source", "target"])
    query = torch.tensor([[[[5.0]]]])
    assert detector.anomaly_score(query).item() == 1.0  # the target clip; source says 5
    pooled = KnnDetector(num_neighbors=2, metric="euclidean", per_domain=False)
    pooled.fit(points, domains=["source", "source", "target"])
    assert pooled.anomaly_score(query).item() == 3.0  # (1 + 5) / 2


def test_each_band_may_choose_another_reference() -> None:
    low_matches = torch.tensor([[1.0, 0.0], [0.0, 1.0]])[None, None]
    high_matches = torch.tensor([[0.0, 1.0], [1.0, 0.0]])[None, None]
    detector = KnnDetector().fit(torch.cat([low_matches, high_matches]))
    query = torch.tensor([[1.0, 0.0], [1.0, 0.0]])[None, None]  # bands of both
    assert detector.anomaly_score(query).item() == 0.0
    assert detector.nearest(query, 1)[1].item() == 0.5  # one whole clip matches half


def test_the_cosine_metric_ignores_length_and_stays_in_its_range(references) -> None:
    detector = KnnDetector().fit(references)
    queries = torch.cat([clips(4, seed=1), -references])
    scores = detector.anomaly_score(queries)
    torch.testing.assert_close(detector.anomaly_score(100 * queries), scores)
    assert ((scores >= 0) & (scores <= 2)).all()


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"metric": "consine"}, "metric='consine' is not one of 'cosine', 'euclidean'"),
        ({"num_neighbors": 0}, "num_neighbors=0 must be 1 or more"),
    ],
)
def test_an_option_without_meaning_is_refused(options, message) -> None:
    with pytest.raises(ValueError, match=message):
        KnnDetector(**options)

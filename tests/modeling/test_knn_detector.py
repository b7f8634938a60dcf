"""Nearest neighbours and all that is done to their distances, derived again in plain loops."""

import math

import numpy as np
import pytest
import torch

from modeling.detectors import KnnDetector
from tests.modeling.detector_cases import DOMAINS, clips

EPSILON = 1e-8
FORMS = (
    "none",
    "local_density",
    "local_density_difference",
    "log_local_density",
    "varmin",
    "log_varmin",
)


def distance(a, b, metric: str) -> float:
    """Return the distance of two vectors, in float64."""
    a, b = np.asarray(a, dtype=np.float64), np.asarray(b, dtype=np.float64)
    if metric != "euclidean":
        a, b = a / np.linalg.norm(a), b / np.linalg.norm(b)
    if metric == "cosine":
        return 1.0 - float(a @ b)
    return math.sqrt(sum((x - y) ** 2 for x, y in zip(a, b, strict=True)))


def plain_density(i, members, k, metric, *, total) -> float:
    away = sorted(distance(members[i], other, metric) for j, other in enumerate(members) if j != i)
    return sum(away[:k]) if total else sum(away[:k]) / len(away[:k])


def plain_slope(members, densities, metric, *, log) -> float:
    """Return Cov(u, v) / Var(v) over the members, each with its nearest other."""
    u, v = [], []
    for i, member in enumerate(members):
        others = [j for j in range(len(members)) if j != i]
        nearest = min(others, key=lambda j: distance(member, members[j], metric))
        u.append(distance(member, members[nearest], metric))
        v.append(densities[nearest])
    if log:
        u, v = np.log(np.array(u) + EPSILON), np.log(np.array(v) + EPSILON)
    return float(np.cov(u, v)[0, 1] / np.var(v, ddof=1))


def plain_part(query, members, form, k, *, num_neighbors, metric, total) -> float:
    """Score one view and band of one clip by one domain."""
    values = [distance(query, member, metric) for member in members]
    if form != "none":
        b = [plain_density(i, members, k, metric, total=total) for i in range(len(members))]
        alpha = 1.0
        if form.endswith("varmin"):
            alpha = plain_slope(members, b, metric, log=form.startswith("log"))
        if form == "local_density":
            values = [d / (b_i + EPSILON) for d, b_i in zip(values, b, strict=True)]
        elif form.startswith("log"):
            values = [
                math.log(d + EPSILON) - alpha * math.log(b_i + EPSILON)
                for d, b_i in zip(values, b, strict=True)
            ]
        else:
            values = [d - alpha * b_i for d, b_i in zip(values, b, strict=True)]
    values = sorted(values)[:num_neighbors]
    return sum(values) / len(values)


def plain_domain(query, members, form="none", k=4, *, total=False, num_neighbors=1, metric):
    """Score one clip, (views, bands, size), by one domain: the mean over views and bands."""
    parts = [
        plain_part(
            query[v, b],
            [member[v, b] for member in members],
            form,
            k,
            num_neighbors=num_neighbors,
            metric=metric,
            total=total,
        )
        for v in range(query.shape[0])
        for b in range(query.shape[1])
    ]
    return sum(parts) / len(parts)


def by_domain(references, domains) -> dict:
    return {
        domain: [r for r, d in zip(references, domains, strict=True) if d == domain]
        for domain in set(domains)
    }


def close(scores: torch.Tensor, expected: list[float]) -> None:
    torch.testing.assert_close(scores, torch.tensor(expected, dtype=torch.float32))


@pytest.mark.parametrize("metric", ["cosine", "euclidean", "unit_euclidean"])
@pytest.mark.parametrize("num_neighbors", [1, 6])
@pytest.mark.parametrize("per_domain", [True, False])
def test_knn_agrees_with_its_formula(references, metric, num_neighbors, per_domain) -> None:
    options = {"num_neighbors": num_neighbors, "metric": metric}
    detector = KnnDetector(**options, per_domain=per_domain).fit(references, domains=DOMAINS)
    queries = clips(4, seed=1)
    domains = by_domain(references, DOMAINS if per_domain else [None] * 20)
    expected = [min(plain_domain(q, d, **options) for d in domains.values()) for q in queries]
    close(detector.anomaly_score(queries), expected)


@pytest.mark.parametrize("metric", ["cosine", "euclidean", "unit_euclidean"])
@pytest.mark.parametrize("form", FORMS)
@pytest.mark.parametrize("num_neighbors", [1, 3])
def test_rescaled_distances_agree_with_their_formula(
    references, metric, form, num_neighbors
) -> None:
    """K = 16 for the source and 9 for the target domain, which has 5 clips here, hence 4 others."""
    domains = ["source"] * 15 + ["target"] * 5
    options = {"num_neighbors": num_neighbors, "metric": metric}
    queries = clips(3, seed=1)
    for total in (False, True):
        detector = KnnDetector(
            **options,
            normalization=form,
            density_neighbors=6,
            target_density_neighbors=9,
            density_total=total,
        ).fit(references, domains=domains)
        members = by_domain(references, domains)
        expected = [
            min(
                plain_domain(q, members["source"], form, 6, total=total, **options),
                plain_domain(q, members["target"], form, 9, total=total, **options),
            )
            for q in queries
        ]
        close(detector.anomaly_score(queries), expected)


def plain_left_out(members, domain, **options) -> list[float]:
    """Return what each member of a domain scores by the others of it."""
    return [
        plain_domain(m, [o for j, o in enumerate(members) if j != i], **options)
        for i, m in enumerate(members)
    ]


@pytest.mark.parametrize("how", ["median", "z_score"])
@pytest.mark.parametrize("form", ["none", "local_density"])
def test_domains_are_brought_to_one_scale_by_their_own_leave_one_out_scores(how, form) -> None:
    references = clips(16, seed=0)
    references[10:] *= torch.tensor([1.0, -1.0, 1.0, 1.0, 1.0, -1.0])  # the target is elsewhere
    domains = ["source"] * 10 + ["target"] * 6
    options = {"form": form, "k": 3, "num_neighbors": 2, "metric": "cosine"}
    detector = KnnDetector(
        num_neighbors=2, normalization=form, density_neighbors=3, standardization=how
    ).fit(references, domains=domains)
    members = by_domain(references, domains)
    scale = {}
    for domain, clips_of_it in members.items():
        left_out = np.array(plain_left_out(clips_of_it, domain, **options))
        median = (0.0, np.median(left_out))
        scale[domain] = median if how == "median" else (left_out.mean(), left_out.std())
    expected = [
        min((plain_domain(q, members[d], **options) - scale[d][0]) / scale[d][1] for d in members)
        for q in clips(5, seed=1)
    ]
    close(detector.anomaly_score(clips(5, seed=1)), expected)
    left_out = []
    for i in range(16):
        others = by_domain(
            torch.cat([references[:i], references[i + 1 :]]), domains[:i] + domains[i + 1 :]
        )
        left_out.append(
            min(
                (plain_domain(references[i], others[d], **options) - scale[d][0]) / scale[d][1]
                for d in members
            )
        )
    close(detector.leave_one_out(), left_out)


@pytest.mark.parametrize("oversampling", ["smote", "memmix"])
def test_a_clip_is_left_out_together_with_its_mixtures(references, oversampling) -> None:
    detector = KnnDetector(
        metric="euclidean", per_domain=False, oversampling=oversampling, oversampling_ratio=2.0
    ).fit(references, domains=DOMAINS)
    state = detector.state_dict()
    assert len(state["parents"]) > 20
    left_out, seeing_itself = detector.leave_one_out(), detector.anomaly_score(references)
    assert (seeing_itself < 1e-6).all()
    for i in range(20):
        kept, position = state["references"], int((state["rows"] == i).nonzero())
        members = [clip for j, clip in enumerate(kept) if j != position]
        for (first, second), share in zip(state["parents"], state["shares"], strict=True):
            if position not in (first, second):
                members.append(share * kept[first] + (1 - share) * kept[second])
        expected = plain_domain(references[i], members, metric="euclidean")
        assert left_out[i].item() == pytest.approx(expected, rel=1e-5)


def test_mixtures_are_never_neighbours_of_their_own_parents_in_a_density() -> None:
    """Mixtures 0.9 to 0.1 crowd around a target clip, whose density stays that of other clips."""
    references = clips(8, seed=0)[:, :1, :1]
    domains = ["source"] * 5 + ["target"] * 3
    detector = KnnDetector(
        metric="euclidean",
        normalization="local_density",
        density_neighbors=2,
        oversampling="memmix",
    ).fit(references, domains=domains)
    state = detector.state_dict()
    densities = state["densities"][5:8, 0, 0]  # after the source: the recorded target clips
    for i in range(3):
        target = references[5 + i]
        others = [references[5 + j] for j in range(3) if j != i]
        others += [
            0.9 * references[5 + j] + 0.1 * references[s]
            for j in range(3)
            if j != i
            for s in range(5)
        ]
        away = sorted(distance(target.flatten(), o.flatten(), "euclidean") for o in others)
        assert densities[i].item() == pytest.approx(sum(away[:2]) / 2, rel=1e-5)


def test_the_density_of_a_domain_of_one_is_that_of_the_others_on_average() -> None:
    """On a line: source at 0, 1, 3 with densities 1, 1, 2; the target clip at 10 has none."""
    points = torch.tensor([0.0, 1.0, 3.0, 10.0])[:, None, None, None]
    detector = KnnDetector(metric="euclidean", normalization="local_density", density_neighbors=1)
    detector.fit(points, domains=["source"] * 3 + ["target"])
    torch.testing.assert_close(
        detector.state_dict()["densities"].flatten(),
        torch.tensor([1.0, 1.0, 2.0, 4 / 3], dtype=torch.float64),
    )
    score = detector.anomaly_score(torch.tensor([[[[9.0]]]]))
    assert score.item() == pytest.approx(3 / 4)


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


def test_the_nearer_domain_is_that_of_the_clip_or_of_each_view() -> None:
    """Two views on a line: source at (0, 0), target at (4, 4), the clip at (1, 3)."""
    points = torch.tensor([[0.0, 0.0], [4.0, 4.0]])[:, :, None, None]
    query, domains = torch.tensor([[1.0, 3.0]])[:, :, None, None], ["source", "target"]
    for choice, due in (("clip", 2.0), ("view", 1.0)):
        detector = KnnDetector(metric="euclidean", domain_choice=choice)
        assert detector.fit(points, domains=domains).anomaly_score(query).item() == due


def test_each_view_has_its_own_scale_where_it_chooses_its_domain(references) -> None:
    domains = ["source"] * 15 + ["target"] * 5
    both = KnnDetector(standardization="z_score", domain_choice="view")
    both.fit(references, domains=domains)
    queries = clips(4, seed=1)
    scores = [
        KnnDetector(standardization="z_score", views=[view])
        .fit(references, domains=domains)
        .anomaly_score(queries)
        for view in (0, 1)
    ]
    torch.testing.assert_close(both.anomaly_score(queries), (scores[0] + scores[1]) / 2)


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


@pytest.mark.parametrize("form", ["local_density", "log_local_density"])
def test_a_normalised_score_does_not_depend_on_the_unit_of_the_embedding(references, form) -> None:
    scores = []
    for unit in (1.0, 1000.0):
        detector = KnnDetector(metric="euclidean", normalization=form, standardization="z_score")
        detector.fit(unit * references, domains=["source"] * 15 + ["target"] * 5)
        scores.append(detector.anomaly_score(unit * clips(4, seed=1)))
    torch.testing.assert_close(*scores, rtol=1e-4, atol=1e-4)


def test_duplicates_bring_nothing_but_closeness(references) -> None:
    once = KnnDetector(num_neighbors=2).fit(references, domains=DOMAINS)
    twice = KnnDetector(num_neighbors=2).fit(
        torch.cat([references, references]), domains=DOMAINS * 2
    )
    queries = clips(5, seed=1)
    assert (twice.anomaly_score(queries) <= once.anomaly_score(queries) + 1e-6).all()
    assert (twice.leave_one_out()[:20] <= once.leave_one_out() + 1e-6).all()


def test_a_coreset_keeps_every_target_clip_and_costs_no_more_than_it_says() -> None:
    references = clips(80, seed=0)
    domains = ["source"] * 70 + ["target"] * 10
    whole = KnnDetector(metric="euclidean").fit(references, domains=domains)
    small = KnnDetector(metric="euclidean", coreset_size=20).fit(references, domains=domains)
    rows = small.state_dict()["rows"]
    assert len(rows) == 30
    assert set(range(70, 80)) <= set(rows.tolist())
    left_out = references[[i for i in range(80) if i not in rows.tolist()]].flatten(1)
    radius = torch.cdist(left_out, references[rows].flatten(1)).amin(dim=1).amax()
    loss = small.anomaly_score(clips(50, seed=1)) - whole.anomaly_score(clips(50, seed=1))
    assert (loss >= 0).all()
    assert 0 < loss.amax() <= radius
    with pytest.raises(ValueError, match="held out, or keep all"):
        small.leave_one_out()


def test_a_state_without_rows_is_that_of_all_clips_in_order(references) -> None:
    """As version 1 wrote it, before banks could leave clips out."""
    detector = KnnDetector().fit(references)
    state = {k: v for k, v in detector.state_dict().items() if k != "rows"}
    loaded = KnnDetector().load_state_dict(state)
    queries = clips(4, seed=1)
    assert torch.equal(loaded.nearest(queries, 3)[0], detector.nearest(queries, 3)[0])
    assert torch.equal(loaded.anomaly_score(queries), detector.anomaly_score(queries))


def test_a_state_of_other_options_is_refused(references) -> None:
    fitted = KnnDetector(normalization="local_density", oversampling="memmix")
    state = fitted.fit(references, domains=DOMAINS).state_dict()
    with pytest.raises(ValueError, match="84 densities, but there are 20 references"):
        KnnDetector(normalization="local_density").load_state_dict(state)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"metric": "consine"}, "metric='consine' is not one of 'cosine', 'euclidean'"),
        ({"num_neighbors": 0}, "num_neighbors=0 must be a whole number, 1 or more"),
        ({"num_neighbors": 1.5}, "num_neighbors=1.5 must be a whole number"),
        ({"num_neighbors": "2"}, "num_neighbors='2' must be a whole number"),
        ({"normalization": "ldn"}, "normalization='ldn' is not one of 'none', 'local_density'"),
        ({"density_neighbors": 0}, "density_neighbors=0 must be"),
        ({"target_density_neighbors": 0}, "target_density_neighbors=0 must be"),
        ({"domain_choice": "band"}, "domain_choice='band' is not one of 'clip', 'view'"),
        ({"standardization": "rank"}, "standardization='rank' is not one of"),
        ({"standardization": "median", "normalization": "varmin"}, "Take standardization='z_sco"),
        ({"oversampling": "mixup"}, "oversampling='mixup' is not one of 'none', 'smote', 'memmix'"),
        ({"oversampling_ratio": -0.1}, "oversampling_ratio=-0.1 must be a number, 0.0 or more"),
        ({"oversampling_neighbors": 0}, "oversampling_neighbors=0 must be"),
        ({"coreset_size": 0}, "coreset_size=0 must be"),
    ],
)
def test_an_option_without_meaning_is_refused(options, message) -> None:
    with pytest.raises(ValueError, match=message):
        KnnDetector(**options)

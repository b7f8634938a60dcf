"""The laws that every detector keeps; a new one keeps them by being named in detector_cases.py."""

import pytest
import torch
from safetensors.torch import load_file, save_file

from modeling import density, detector_base, neighbor_search
from modeling.detectors import BANK_DETECTORS, DETECTORS, NormDetector, NotFittedError
from tests.modeling.detector_cases import (
    CASES,
    COMPARING,
    DOMAINS,
    EACH,
    LEFT_OUT,
    cases,
    clips,
)


def test_every_detector_is_held_to_the_contract() -> None:
    assert {CASES[case][0] for case in EACH} == set(BANK_DETECTORS)


@cases(EACH)
def test_fit_returns_the_detector(new_detector, references) -> None:
    detector = new_detector()
    assert detector.fit(references) is detector


@cases(EACH)
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
    one_rounding = {"rtol": 2**-23, "atol": 1e-7}
    torch.testing.assert_close(together, alone, **one_rounding)
    torch.testing.assert_close(detector.anomaly_score(batch.flip(0)).flip(0), alone, **one_rounding)
    # Blocks that bound the memory, smaller than queries and references, and the float32 pass.
    monkeypatch.setattr(detector_base, "QUERY_BLOCK", 3)
    monkeypatch.setattr(neighbor_search, "SEARCH_BLOCK", 2)
    monkeypatch.setattr(neighbor_search, "REFERENCE_BLOCK", 4)
    monkeypatch.setattr(neighbor_search, "SPARE", 0)
    torch.testing.assert_close(detector.anomaly_score(batch), alone, **one_rounding)


@cases(EACH)
def test_no_clip_gives_no_score(detector) -> None:
    assert detector.anomaly_score(clips(0, seed=1)).shape == (0,)


@cases(EACH)
@pytest.mark.parametrize("dtype", [torch.float64, torch.bfloat16])
def test_scores_are_float32_whatever_comes(detector, dtype) -> None:
    embedding = clips(4, seed=1).to(dtype)
    scores = detector.anomaly_score(embedding)
    assert scores.dtype == torch.float32
    torch.testing.assert_close(scores, detector.anomaly_score(embedding.float()))


def test_the_order_of_the_references_does_not_matter(new_detector, detector, references) -> None:
    order = torch.randperm(20, generator=torch.Generator().manual_seed(1))
    shuffled = new_detector().fit(references[order], domains=[DOMAINS[i] for i in order])
    torch.testing.assert_close(
        shuffled.anomaly_score(clips(5, seed=1)), detector.anomaly_score(clips(5, seed=1))
    )
    (found,), _ = shuffled.nearest(references[[17]], 1)  # of the target: in a coreset, too
    assert order[found] == 17


def test_fitting_again_gives_the_same_and_forgets_what_was_before(
    new_detector, detector, references
) -> None:
    again = new_detector().fit(clips(9, seed=5)).fit(references, domains=DOMAINS)
    assert set(again.state_dict()) == set(detector.state_dict())
    for name, tensor in detector.state_dict().items():
        torch.testing.assert_close(again.state_dict()[name], tensor)


def test_one_reference_of_each_domain_is_enough_to_score(new_detector, references) -> None:
    for domains in (["source", "target", None], ["source"] * 2 + ["target"], ["target"] * 3):
        detector = new_detector().fit(references[:3], domains=domains)
        known, unknown = detector.anomaly_score(torch.stack([references[0], -5 * references[0]]))
        assert known < unknown < torch.inf
    alone = new_detector().fit(references[:1])
    known, unknown = alone.anomaly_score(torch.stack([references[0], -5 * references[0]]))
    assert known < unknown < torch.inf


@pytest.mark.filterwarnings("error")
def test_constant_embeddings_are_told_from_what_is_not_there(new_detector, references) -> None:
    """Silence, or a broken microphone: the references do not vary at all."""
    same = references[:1].expand(20, -1, -1, -1)
    detector = new_detector().fit(same, domains=DOMAINS)
    known, unknown = detector.anomaly_score(torch.stack([references[0], -5 * references[0]]))
    assert known < unknown < torch.inf
    if new_detector.case in LEFT_OUT:
        assert detector.leave_one_out().isfinite().all()


@pytest.mark.filterwarnings("error")
def test_duplicate_references_leave_scores_finite_and_in_order(new_detector, references) -> None:
    twice = new_detector().fit(torch.cat([references, references]), domains=DOMAINS * 2)
    known, unknown = twice.anomaly_score(torch.stack([references[3], -5 * references[3]]))
    assert known < unknown < torch.inf
    if new_detector.case in LEFT_OUT:
        assert twice.leave_one_out().isfinite().all()


def test_a_clip_of_silence_has_a_score(detector, references) -> None:
    assert detector.anomaly_score(torch.zeros_like(references[:2])).isfinite().all()


def test_a_state_comes_back_from_safetensors_as_it_was(new_detector, detector, tmp_path) -> None:
    state = detector.state_dict()
    save_file({name: tensor.contiguous() for name, tensor in state.items()}, tmp_path / "state")
    loaded = new_detector().load_state_dict(load_file(tmp_path / "state"))
    queries = clips(5, seed=1)
    assert torch.equal(loaded.anomaly_score(queries), detector.anomaly_score(queries))
    assert torch.equal(loaded.nearest(queries, 4)[0], detector.nearest(queries, 4)[0])
    if new_detector.case in LEFT_OUT:
        assert torch.equal(loaded.leave_one_out(), detector.leave_one_out())
    assert all(torch.equal(loaded.state_dict()[name], tensor) for name, tensor in state.items())


def test_a_state_of_something_else_is_refused(new_detector, detector) -> None:
    with pytest.raises(ValueError, match="state lacks"):
        new_detector().load_state_dict({"weights": torch.zeros(3)})
    state = detector.state_dict()
    kept = {name: state[name] for name in ("references", "domain_ids", "rows")}
    if set(kept) < set(state):
        with pytest.raises(ValueError, match="state lacks"):
            new_detector().load_state_dict(kept)
    with pytest.raises(ValueError, match="one number for each"):
        new_detector().load_state_dict(state | {"domain_ids": torch.zeros(3)})


def test_the_nearest_reference_of_a_reference_is_itself(detector, references, monkeypatch) -> None:
    monkeypatch.setattr(neighbor_search, "REFERENCE_BLOCK", 7)
    kept = detector.state_dict()["rows"]
    indices, distances = detector.nearest(references[kept], 3)
    assert torch.equal(indices[:, 0], kept)
    torch.testing.assert_close(distances[:, 0], torch.zeros(len(kept)), atol=1e-5, rtol=0)
    assert (distances.diff(dim=1) >= 0).all()
    assert all(len(set(row)) == 3 for row in indices.tolist())


@cases(EACH)
def test_nearest_gives_no_more_references_than_there_are(detector) -> None:
    indices, distances = detector.nearest(clips(2, seed=1), 99)
    kept = sorted(detector.state_dict()["rows"].tolist())
    assert indices.shape == distances.shape == (2, len(kept))
    assert sorted(indices[0].tolist()) == kept


@cases(EACH)
@pytest.mark.parametrize("value", [torch.nan, torch.inf])
def test_a_value_that_is_not_finite_is_refused_naming_its_clip(
    detector, value, monkeypatch
) -> None:
    monkeypatch.setattr(detector_base, "REFERENCE_BLOCK", 2)
    embedding = clips(3, seed=1)
    embedding[2, 1, 0, 4] = value
    with pytest.raises(ValueError, match=r"clips \[2\] hold NaN or infinite"):
        detector.anomaly_score(embedding)
    with pytest.raises(ValueError, match=r"clips \[2\] hold NaN or infinite"):
        detector.fit(embedding)


@cases(EACH)
def test_an_embedding_of_another_model_is_refused(detector) -> None:
    for shape in ((1, 1, 2, 6), (1, 3, 2, 6), (1, 2, 1, 6), (1, 2, 2, 7)):
        with pytest.raises(ValueError, match="same model"):
            detector.anomaly_score(torch.zeros(shape))


@cases(EACH)
def test_one_embedding_without_its_batch_dimension_is_refused(detector) -> None:
    with pytest.raises(ValueError, match=r"embedding\[None\]"):
        detector.anomaly_score(torch.zeros(2, 2, 6))


@cases(EACH)
def test_domains_of_other_clips_are_refused(new_detector, references) -> None:
    with pytest.raises(ValueError, match="20 clips but 3 domains"):
        new_detector().fit(references, domains=DOMAINS[:3])
    with pytest.raises(ValueError, match=r"\['tatget'\] are no domains"):
        new_detector().fit(references, domains=["tatget"] * 20)


@cases(EACH)
def test_fitting_on_nothing_is_refused(new_detector) -> None:
    with pytest.raises(ValueError, match="no clips"):
        new_detector().fit(clips(0, seed=0))


@cases(COMPARING)
def test_a_view_is_compared_with_the_same_view_of_the_references_only(
    new_detector, references
) -> None:
    """A far microphone that hears what near references sound like is not thereby normal."""
    embedding = references.clone()
    embedding[:, 1] *= -1
    detector = new_detector().fit(embedding, domains=DOMAINS)
    right, swapped = detector.anomaly_score(torch.stack([embedding[2], embedding[2].flip(0)]))
    assert right < swapped


def test_views_that_are_not_scored_do_not_matter(new_detector, references) -> None:
    for view in (0, 1):
        alone = new_detector(views=None).fit(references[:, [view]], domains=DOMAINS)
        chosen = new_detector(views=[view]).fit(references, domains=DOMAINS)
        queries = clips(4, seed=1)
        torch.testing.assert_close(
            chosen.anomaly_score(queries), alone.anomaly_score(queries[:, [view]])
        )
        queries[:, 1 - view] = 0.0
        torch.testing.assert_close(
            chosen.anomaly_score(queries), alone.anomaly_score(queries[:, [view]])
        )


def test_the_norm_is_the_score_itself_where_the_embedding_holds_one() -> None:
    scores = torch.tensor([3.25, 0.1, 1e-30, 7e20])
    detector = NormDetector().fit(torch.ones(2, 1, 1, 1))
    assert torch.equal(detector.anomaly_score(scores[:, None, None, None]), scores)
    views = torch.tensor([[[[3.0, 4.0]], [[0.0, 1.0]]]])  # lengths 5 and 1
    assert NormDetector().fit(views).anomaly_score(views).item() == 3.0
    lengths = torch.tensor([2.0, 7.0])[:, None, None, None]
    detector.fit(lengths, domains=["target", "source"])  # kept in another order
    assert detector.leave_one_out().tolist() == [2.0, 7.0]


@cases(EACH)
@pytest.mark.parametrize("views", [[], [0, 0], [-1]])
def test_views_that_cannot_be_are_refused(new_detector, references, views) -> None:
    with pytest.raises(ValueError, match="each once"):
        new_detector(views=views)
    with pytest.raises(ValueError, match="embedding has 2 views"):
        new_detector(views=[2]).fit(references)


def test_densities_of_a_large_bank_come_from_a_sample_of_it(monkeypatch) -> None:
    """Neighbours that were not looked at only make a density larger, and none is missing."""
    options = {"normalization": "local_density"}
    embedding = clips(200, seed=0)
    whole = DETECTORS["knn"](**options).fit(embedding).state_dict()["densities"]
    monkeypatch.setattr(density, "DENSITY_SAMPLE", 100)
    sampled = DETECTORS["knn"](**options).fit(embedding).state_dict()["densities"]
    assert (sampled >= whole).all()
    assert (sampled > whole).double().mean() > 0.5
    assert sampled.mean() < 1.5 * whole.mean()

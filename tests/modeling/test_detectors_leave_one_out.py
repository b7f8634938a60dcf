"""Each reference is scored by others, by every detector: the laws of `leave_one_out`."""

import pytest
import torch

from modeling import knn_detector
from tests.modeling.detector_cases import (
    COMPARING,
    DOMAINS,
    EXACT,
    LEFT_OUT,
    REFITTED,
    cases,
    clips,
)


@cases(LEFT_OUT)
def test_references_are_left_out_the_same_in_blocks_of_any_size(detector, monkeypatch) -> None:
    expected = detector.leave_one_out()
    monkeypatch.setattr(knn_detector, "QUERY_BLOCK", 3)
    monkeypatch.setattr(knn_detector, "LEFT_OUT_BLOCK", 40)
    torch.testing.assert_close(detector.leave_one_out(), expected)


@cases(EXACT)
def test_leave_one_out_is_what_the_other_references_say(new_detector, detector, references) -> None:
    left_out = detector.leave_one_out()
    for i in range(20):
        others = [j for j in range(20) if j != i]
        alone = new_detector().fit(references[others], domains=[DOMAINS[j] for j in others])
        torch.testing.assert_close(left_out[[i]], alone.anomaly_score(references[[i]]))


@cases(REFITTED)
def test_a_model_is_refitted_without_the_fold_of_a_reference(
    new_detector, detector, references
) -> None:
    """Ten folds of twenty clips: some partner explains a clip's score."""
    left_out = detector.leave_one_out()
    for i in (3, 17):
        possible = []
        for partner in set(range(20)) - {i}:
            others = [j for j in range(20) if j not in (i, partner)]
            refitted = new_detector().fit(references[others], domains=[DOMAINS[j] for j in others])
            possible.append(refitted.anomaly_score(references[[i]]).item())
        assert min(abs(left_out[i].item() - score) for score in possible) < 1e-4 * abs(left_out[i])


@cases(REFITTED)
def test_ten_references_or_fewer_are_left_out_one_by_one(new_detector, references) -> None:
    few, domains = references[12:19], DOMAINS[12:19]
    left_out = new_detector().fit(few, domains=domains).leave_one_out()
    for i in range(7):
        others = [j for j in range(7) if j != i]
        alone = new_detector().fit(few[others], domains=[domains[j] for j in others])
        torch.testing.assert_close(left_out[[i]], alone.anomaly_score(few[[i]]))


def test_one_reference_alone_cannot_be_left_out(new_detector, references) -> None:
    with pytest.raises(ValueError, match="two references or more"):
        new_detector().fit(references[:1]).leave_one_out()


def test_ten_target_clips_beside_many_give_finite_scores_and_leave_one_out(new_detector) -> None:
    embedding = clips(40, seed=3)
    embedding[30:] += 3.0
    detector = new_detector().fit(embedding, domains=["source"] * 30 + ["target"] * 10)
    assert detector.anomaly_score(embedding).isfinite().all()
    if new_detector.case in LEFT_OUT:
        left_out = detector.leave_one_out()
        assert left_out.isfinite().all()
        if new_detector.case in COMPARING:
            assert left_out.mean() > detector.anomaly_score(embedding).mean()

"""Scores of several systems pair clip by clip, or are refused."""

from dataclasses import replace

import numpy as np
import pytest
import torch

from modeling import Calibration
from nearfar.fused_scores import (
    CalibrationClips,
    fused_calibration,
    fused_scores,
    paired_tables,
    search_input,
    verdicts,
)
from nearfar.fusion import ScoreFusion
from nearfar.schema import GroundTruth
from nearfar.score_table import ScoreTable

FAN, PUMP = "2026/fan/00", "2026/pump/00"
CALIBRATION = {FAN: [[0.0, 1.0], [0.0, 10.0]], PUMP: [[0.0, 2.0], [0.0, 30.0]]}


def make_table(seed: int, *, count: int = 6) -> ScoreTable:
    """Return clips of two machines in an order of their own."""
    rng = np.random.default_rng(seed)
    rows = [
        (
            machine,
            f"section_00_{i:04d}.wav",
            ("source", "target")[i % 2],
            ("normal", "anomaly")[i // 2 % 2],
        )
        for machine in (FAN, PUMP)
        for i in range(count)
    ]
    rng.shuffle(rows)
    columns = [np.array(values, dtype=object) for values in zip(*rows, strict=True)]
    return ScoreTable(
        *columns,
        anomaly_scores=rng.normal(size=len(rows)),
        p_values=np.full(len(rows), np.nan),
        decisions=np.full(len(rows), None, dtype=object),
    )


def by_clip(table: ScoreTable, scores: np.ndarray) -> dict[tuple[str, str], float]:
    return dict(zip(zip(table.machines, table.file_names, strict=True), scores, strict=True))


def test_scores_are_fused_clip_by_clip_whatever_the_order() -> None:
    tables = {"a": make_table(1), "b": make_table(2)}
    fusion = ScoreFusion((0.25, 0.75), normalization="min_max").fit(CALIBRATION)
    paired = paired_tables(tables)
    fused = by_clip(paired[0], fused_scores(fusion, paired))
    a, b = (by_clip(table, table.anomaly_scores) for table in tables.values())
    widths = {FAN: (1, 10), PUMP: (2, 30)}
    for (machine, name), score in fused.items():
        first, second = widths[machine]
        expected = 0.25 * a[machine, name] / first + 0.75 * b[machine, name] / second
        assert score == pytest.approx(expected)
    assert len(fused) == 12
    back = paired_tables(dict(reversed(tables.items())))
    swapped = ScoreFusion((0.75, 0.25), normalization="min_max").fit(
        {name: scores[::-1] for name, scores in CALIBRATION.items()}
    )
    assert by_clip(back[0], fused_scores(swapped, back)) == pytest.approx(fused)


def test_scores_of_different_clips_are_refused_with_one_that_is_missing() -> None:
    whole, part = make_table(1), make_table(2)
    lost = ScoreTable(**{name: column[1:] for name, column in vars(part).items()})
    name = f"{part.machines[0]}/{part.file_names[0]}"
    for tables, lacking in (({"a": whole, "b": lost}, "b"), ({"b": lost, "a": whole}, "b")):
        with pytest.raises(ValueError, match=f"different clips .*{lacking} lacks 1 .* as {name}"):
            paired_tables(tables)
    other = replace(part, file_names=np.array([f"x{n}" for n in part.file_names], dtype=object))
    with pytest.raises(ValueError, match=r"different clips \(12 and 12\)"):
        paired_tables({"a": whole, "b": other})


def test_a_clip_that_comes_twice_or_is_told_differently_is_refused() -> None:
    table = make_table(1)
    twice = replace(table, file_names=table.file_names.copy())
    fan = np.flatnonzero(table.machines == FAN)
    twice.file_names[fan[0]] = twice.file_names[fan[1]]
    with pytest.raises(ValueError, match=r"b has 2026/fan/00/section_00_\d{4}.wav more than once"):
        paired_tables({"a": table, "b": twice})
    told = make_table(2)
    other = replace(told, domains=np.where(told.domains == "source", "target", "source"))
    with pytest.raises(ValueError, match=r"2026/.* is \w+ in a and \w+ in b"):
        paired_tables({"a": table, "b": other})
    unknown = replace(told, domains=np.full(12, None), conditions=np.full(12, None))
    assert len(paired_tables({"a": table, "b": unknown})) == 2  # unknown contradicts nothing


def clips(
    names: list[str | None], scores: list[float], origin: str = "held_out"
) -> CalibrationClips:
    domains = ["source" if i % 2 else "target" for i in range(len(names))]
    return CalibrationClips(np.array(scores), names, domains, origin)


def test_only_clips_that_every_member_held_out_calibrate_a_fusion() -> None:
    fusion = ScoreFusion((0.5, 0.5), normalization="min_max").fit(CALIBRATION)
    first = clips(["a", "b", "c", "d"], [0.1, 0.2, 0.3, 0.4])
    second = clips(["d", "x", "b"], [4.0, 5.0, 2.0])
    fused = fused_calibration(fusion, [first, second], FAN)
    assert fused.file_names == ["b", "d"]
    assert fused.domains == ["source", "source"]
    assert fused.anomaly_scores == pytest.approx([0.5 * 0.2 + 0.5 * 0.2, 0.5 * 0.4 + 0.5 * 0.4])
    assert fused.origin == "held_out"
    crossed = second._replace(origin="cross_fitted")
    assert fused_calibration(fusion, [first, crossed], FAN).origin == "cross_fitted and held_out"


def test_members_without_a_common_clip_leave_no_calibration() -> None:
    fusion = ScoreFusion((0.5, 0.5)).fit(CALIBRATION)
    for names in (["x", "y"], [None, None]):
        other = clips(names, [1.0, 2.0])
        first = clips(["a", "b"] if names[0] else [None, None], [0.1, 0.2])
        fused = fused_calibration(fusion, [first, other], FAN)
        assert (len(fused.anomaly_scores), fused.file_names, fused.domains) == (0, [], [])


def test_a_search_sees_normalised_scores_of_labelled_clips() -> None:
    tables = paired_tables({"a": make_table(1), "b": make_table(2)})
    tables[0].conditions[0] = None
    fusion = ScoreFusion((0.5, 0.5), normalization="min_max").fit(CALIBRATION)
    machines = search_input(fusion, tables)
    assert sum(len(m.anomalous) for m in machines.values()) == 11
    rows = (tables[0].machines == PUMP) & (tables[0].conditions != None)  # noqa: E711 - an array
    expected = [tables[0].anomaly_scores[rows] / 2, tables[1].anomaly_scores[rows] / 30]
    np.testing.assert_allclose(machines[PUMP].normalized, expected)
    assert machines[PUMP].anomalous.tolist() == (tables[0].conditions[rows] == "anomaly").tolist()


def test_a_verdict_comes_with_the_p_value_of_each_domain_and_its_resolution() -> None:
    names = [f"{i}.wav" for i in range(5)]
    scores = torch.tensor([0.1, 0.2, 0.3, 0.4, 0.5])
    domains = ["source", "source", "source", "target", None]
    calibrations = {
        FAN: Calibration.fit(scores, names, domains, origin="held_out"),
        PUMP: Calibration.fit(torch.empty(0), [], [], origin="held_out"),
    }
    machines = np.array([FAN, FAN, PUMP], dtype=object)
    found = verdicts(machines, np.array([0.25, 0.9, 0.9]), calibrations)
    np.testing.assert_allclose(found.p_values, [4 / 6, 1 / 6, np.nan])
    assert found.decisions.tolist() == [0, 1, None]
    nothing = [np.nan, np.nan]
    np.testing.assert_allclose(found.domain_p_values, [[2 / 4, 2 / 2], [1 / 4, 1 / 2], nothing])
    np.testing.assert_allclose(found.resolutions, [[1 / 4, 1 / 2], [1 / 4, 1 / 2], nothing])


def test_ground_truth_fills_what_names_do_not_tell() -> None:
    known = make_table(1)
    truth = {
        machine: {
            name: GroundTruth(condition, domain)
            for m, name, domain, condition in zip(
                known.machines, known.file_names, known.domains, known.conditions, strict=True
            )
            if m == machine
        }
        for machine in (FAN, PUMP)
    }
    blank = replace(known, domains=np.full(12, None), conditions=np.full(12, None))
    filled = blank.with_ground_truth(truth)
    assert filled.domains.tolist() == known.domains.tolist()
    assert filled.conditions.tolist() == known.conditions.tolist()
    assert blank.conditions.tolist() == [None] * 12  # the table itself is left alone
    assert known.with_ground_truth(truth).conditions.tolist() == known.conditions.tolist()
    name = known.file_names[known.machines == FAN][0]
    del truth[FAN][name]
    with pytest.raises(ValueError, match=f"{FAN}/{name} was scored, but the ground truth does not"):
        blank.with_ground_truth(truth)
    truth[FAN][name] = GroundTruth("anomaly", "source")
    contrary = replace(blank, conditions=np.full(12, "normal", dtype=object))
    with pytest.raises(ValueError, match=r"in the ground truth\. Check that both"):
        contrary.with_ground_truth(truth)

"""False-alarm rates: counted right, with an honest interval, and readable."""

from dataclasses import replace

import numpy as np
import pytest
import torch

from modeling import Calibration
from nearfar.false_alarms import (
    FalseAlarmRate,
    false_alarm_rates,
    format_false_alarms,
    untouched_false_alarms,
)
from nearfar.score_table import ScoreTable


def make_table(rows: list[tuple[str, str | None, str | None, float]]) -> ScoreTable:
    """Return clips (machine, domain, condition, p-value)."""
    columns = [np.array(values, dtype=object) for values in zip(*rows, strict=True)]
    return ScoreTable(
        machines=columns[0],
        file_names=np.array([f"{i}.wav" for i in range(len(rows))], dtype=object),
        domains=columns[1],
        conditions=columns[2],
        anomaly_scores=np.zeros(len(rows)),
        p_values=columns[3].astype(np.float64),
        decisions=np.full(len(rows), None, dtype=object),
    )


FAN, PUMP = "2026/fan/00", "2026/pump/00"
SOURCE = [(FAN, "source", "normal", p) for p in (0.01, 0.02, 0.05, 0.5)]
TARGET = [(FAN, "target", "normal", p) for p in (0.1, 0.100001, 0.9, 1.0)]
ANOMALIES = [(FAN, domain, "anomaly", 0.0) for domain in ("source", "target")] * 9


def measured(table: ScoreTable) -> dict[tuple[str, str], list[float]]:
    rates: dict[tuple[str, str], list[float]] = {}
    for row in false_alarm_rates(table):
        rates.setdefault((row.machine, row.domain), []).append(row.measured)
    return rates


def test_false_alarms_are_normal_clips_with_a_p_value_up_to_the_rate() -> None:
    assert measured(make_table(SOURCE + TARGET + ANOMALIES)) == {
        (FAN, "source"): [0.25, 0.75, 0.75],
        (FAN, "target"): [0.0, 0.0, 0.25],
        (FAN, "all"): [0.125, 0.375, 0.5],
    }


def test_several_machines_are_summed_up_clip_by_clip() -> None:
    pump = [(PUMP, "source", "normal", 0.001)] * 12
    rates = measured(make_table(SOURCE + TARGET + pump))
    assert rates[PUMP, "source"] == [1.0] * 3
    assert (PUMP, "all") not in rates  # it has one domain, so that would be the same row twice
    assert rates["all", "source"] == [13 / 16, 15 / 16, 15 / 16]
    assert rates["all", "all"] == [13 / 20, 15 / 20, 16 / 20]


def test_clips_of_unknown_condition_or_without_a_p_value_do_not_count() -> None:
    unknown = [(FAN, "source", None, 0.0), (FAN, None, "normal", np.nan)]
    assert measured(make_table(SOURCE + TARGET + unknown)) == measured(make_table(SOURCE + TARGET))
    assert false_alarm_rates(make_table(ANOMALIES + unknown)) == []


def test_clips_of_unknown_domain_are_a_group_of_their_own() -> None:
    table = replace(make_table(SOURCE), domains=np.full(4, None, dtype=object))
    assert list(measured(table)) == [(FAN, "unknown")]


def test_the_interval_holds_the_true_rate_19_times_in_20() -> None:
    rng = np.random.default_rng(0)
    held = 0
    for _ in range(200):
        rows = [(FAN, "source", "normal", p) for p in rng.uniform(size=80)]
        (row,) = false_alarm_rates(make_table(rows), nominal_rates=[0.1])
        assert row.low <= row.measured <= row.high
        held += row.low <= 0.1 <= row.high
    assert held / 200 >= 0.93  # the exact interval errs on the wide side


@pytest.mark.parametrize(
    ("num_calibration", "expected"),
    [
        (9, [0.0, 0.0, 0.1]),
        (11, [0.0, 0.0, 1 / 12]),
        (99, [0.01, 0.05, 0.1]),
        (38, [0, 1 / 39, 3 / 39]),
    ],
)
def test_what_so_many_calibration_clips_can_give_is_stated(
    num_calibration: int, expected: list[float]
) -> None:
    rows = false_alarm_rates(make_table(SOURCE), num_calibration={FAN: num_calibration})
    assert [row.expected for row in rows] == pytest.approx(expected)
    # And that is what ranks give: a new score is the k-th highest of N + 1 equally often.
    p_values = np.arange(1, num_calibration + 2) / (num_calibration + 1)
    assert [np.mean(p_values <= row.nominal + 1e-12) for row in rows] == pytest.approx(expected)


def test_the_table_has_a_line_for_each_machine_and_domain() -> None:
    rows = [
        FalseAlarmRate(FAN, "source", 0.1, 1 / 12, 50, 0.12, 0.0453, 0.2431),
        FalseAlarmRate(FAN, "source", 0.01, 0.0, 50, 0.0, 0.0, 0.0711),
        FalseAlarmRate("all", "all", 0.01, None, 200, 0.015, 0.0031, 0.0432),
        FalseAlarmRate("all", "all", 0.1, None, 200, 0.5, 0.4287, 0.5713),
    ]
    lines = format_false_alarms([row._asdict() for row in rows]).splitlines()
    assert " ".join(lines[0].split()) == "false alarms domain normals at 1 % at 10 %"
    expected = f"{FAN} source 50 0.0 (0.0-7.1) [0.0] 12.0 (4.5-24.3) [8.3]"
    assert " ".join(lines[1].split()) == expected
    assert lines[2].split() == ["all", "all", "200", "1.5", "(0.3-4.3)", "50.0", "(42.9-57.1)"]
    assert len({len(line) for line in lines[:3]}) == 1
    assert format_false_alarms([]).startswith("No false-alarm rates")


def test_the_expected_rate_is_a_mean_where_clips_are_judged_by_different_numbers() -> None:
    (row, *_) = false_alarm_rates(
        make_table(SOURCE), num_calibration=np.array([9, 9, 11, 11]), nominal_rates=[0.1]
    )
    assert row.expected == pytest.approx((0.1 + 1 / 12) / 2)


def test_calibration_clips_alarm_by_what_the_others_say_domain_by_domain() -> None:
    """Target clips lie above source clips, so they raise all the alarms."""
    scores = torch.cat([torch.linspace(0, 1, 90), torch.linspace(2, 3, 10)])
    domains = ["source"] * 90 + ["target"] * 10
    names = [f"{i}.wav" for i in range(100)]
    fan = Calibration.fit(scores, names, domains, origin="held_out")
    nothing = Calibration.fit(torch.empty(0), [], [], origin="held_out")
    rows = {
        (row.domain, row.nominal): row for row in untouched_false_alarms({FAN: fan, PUMP: nothing})
    }
    assert {row.machine for row in rows.values()} == {FAN}
    assert rows["source", 0.1].measured == 0
    assert rows["target", 0.1].measured >= 0.8
    assert rows["all", 0.1].measured == pytest.approx(0.1, abs=0.02)
    assert rows["all", 0.1].expected == pytest.approx(8 / 81)
    assert rows["all", 0.01].expected == 0  # 80 others cannot say 1 %
    assert (rows["source", 0.05].num_normal, rows["target", 0.05].num_normal) == (90, 10)
    assert untouched_false_alarms({}) == []

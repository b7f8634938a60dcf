"""Scores in one table, the metrics of it, and the folder that keeps both."""

from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from nearfar import evaluation
from nearfar.dcase_task2.bootstrap import bootstrap_interval, resampled_metrics
from nearfar.dcase_task2.metrics import (
    decision_metrics,
    official_score,
    overall_metrics,
    section_metrics,
    within_domain_metrics,
)
from nearfar.evaluation import (
    ScoreTable,
    bootstrap_input,
    evaluate_scores,
    format_metrics,
    read_metrics,
    write_score_folder,
)
from nearfar.files import read_json
from nearfar.submission import check_scores, read_anomaly_scores, read_decisions

OFFICIAL = ("auc_source", "auc_target", "pauc")
MACHINES = ("2026/fan/00", "2026/valve/00")
THRESHOLD = 0.7
SECTIONS = {("fan", 0): "2026/fan/00", ("valve", 0): "2026/valve/00"}


def column(values: Any) -> np.ndarray:
    array = np.empty(len(values), dtype=object)
    array[:] = values
    return array


def make_table(
    machines: tuple[str, ...] = MACHINES, *, count: int = 12, shift: float = 1.0, **known: Any
) -> ScoreTable:
    """Return scores of `count` clips of each machine, domain and condition, in random order.

    Args:
        machines: Full names.
        count: Clips per machine, domain and condition.
        shift: How far anomalies lie above normals, in standard deviations.
        **known: A column to put in place of a whole one, as one value for every clip.
    """
    rng = np.random.default_rng(0)
    rows = [
        (machine, f"section_00_{domain}_test_{condition}_{i:04d}.wav", domain, condition)
        for machine in machines
        for domain in ("source", "target")
        for condition in ("normal", "anomaly")
        for i in range(count)
    ]
    rng.shuffle(rows)
    names = ("machines", "file_names", "domains", "conditions")
    columns = {
        name: column(values) for name, values in zip(names, zip(*rows, strict=True), strict=True)
    }
    scores = rng.normal(size=len(rows)) + shift * (columns["conditions"] == "anomaly")
    p_values = rng.uniform(size=len(rows))
    decisions = (scores > THRESHOLD).astype(int)
    columns |= {name: column([value] * len(rows)) for name, value in known.items()}
    return ScoreTable(
        **columns,
        anomaly_scores=scores,
        p_values=p_values,
        decisions=column(decisions.tolist()),
    )


def assert_same(table: ScoreTable, other: ScoreTable) -> None:
    for name, values in vars(table).items():
        others = getattr(other, name)
        if values.dtype == object:
            assert others.tolist() == values.tolist(), name
            assert [type(x) for x in others] == [type(x) for x in values], name
        else:
            assert others.tobytes() == values.tobytes(), name


def test_metrics_are_those_of_each_section_and_the_score_is_the_official_one() -> None:
    table = make_table()
    metrics = evaluate_scores(table, num_resamples=0)
    sections = []
    for machine in MACHINES:
        chosen = table.machines == machine
        sections.append(
            section_metrics(
                table.conditions[chosen] == "anomaly",
                table.anomaly_scores[chosen],
                table.domains[chosen],
            )
        )
        values = metrics["machines"][machine]
        assert {key: values[key] for key in sections[-1]._fields} == sections[-1]._asdict()
        assert (values["num_normal"], values["num_anomalous"]) == (24, 24)
    assert metrics["official_score"] == official_score(sections)
    assert "reason" not in metrics
    assert "official_score_interval" not in metrics


def test_a_higher_score_for_anomalies_is_better() -> None:
    table = make_table(shift=10.0)
    flipped = replace(table, anomaly_scores=-table.anomaly_scores)
    assert evaluate_scores(table, num_resamples=0)["official_score"] == 1.0
    assert evaluate_scores(flipped, num_resamples=0)["official_score"] < 0.01


def test_the_interval_is_that_of_the_bootstrap_and_holds_the_score() -> None:
    table = make_table()
    metrics = evaluate_scores(table, num_resamples=200, seed=3)
    expected = bootstrap_interval(bootstrap_input(table), num_resamples=200, seed=3)
    assert metrics["official_score_interval"] == [expected.low, expected.high]
    assert expected.low < metrics["official_score"] < expected.high
    assert expected.estimate == metrics["official_score"]


def test_metrics_do_not_depend_on_the_order_of_the_clips() -> None:
    table = make_table()
    order = np.random.default_rng(5).permutation(len(table))
    shuffled = ScoreTable(**{name: values[order] for name, values in vars(table).items()})
    assert evaluate_scores(shuffled, num_resamples=50) == evaluate_scores(table, num_resamples=50)


def test_without_domains_there_is_an_auc_over_all_clips_and_a_reason() -> None:
    table = make_table(("2026/fan/00",), domains=None)
    metrics = evaluate_scores(table, num_resamples=30)
    values = metrics["machines"]["2026/fan/00"]
    overall = overall_metrics(table.conditions == "anomaly", table.anomaly_scores)
    assert (values["auc"], values["pauc"]) == overall
    assert (values["auc_source"], values["auc_target"]) == (None, None)
    assert values["intervals"].keys() == {"auc", "pauc", "precision", "recall", "f1"}
    assert "domains are neither 'source' nor 'target'" in values["reason"]
    assert metrics["official_score"] is None
    assert "official_score_interval" not in metrics
    assert "2026/fan/00: " in metrics["reason"]


def test_in_2020_no_domain_is_needed_and_the_mean_is_arithmetic() -> None:
    table = make_table(("2020/fan/00", "2020/pump/02"), domains=None)
    metrics = evaluate_scores(table, num_resamples=100)
    values = [metrics["machines"][name] for name in table.machine_names]
    aucs = [value for machine in values for value in (machine["auc"], machine["pauc"])]
    assert metrics["official_score"] == pytest.approx(np.mean(aucs))
    assert metrics["means"]["auc"] == pytest.approx(np.mean([v["auc"] for v in values]))
    low, high = metrics["official_score_interval"]
    assert low < metrics["official_score"] < high
    assert "reason" not in metrics


def test_in_2021_the_official_values_are_those_within_the_domains() -> None:
    table = make_table(("2021/fan/00", "2021/pump/02"))
    metrics = evaluate_scores(table, num_resamples=0)
    sections = []
    for machine in table.machine_names:
        clips = table.select(machine)
        sections.append(
            within_domain_metrics(
                clips.conditions == "anomaly", clips.anomaly_scores, clips.domains
            )
        )
        values = metrics["machines"][machine]
        within = {f"within_domain_{k}": v for k, v in sections[-1]._asdict().items()}
        assert {key: values[key] for key in within} == within
    assert metrics["official_score"] == official_score(sections, year=2021)
    since_2022 = [[v[k] for k in OFFICIAL] for v in metrics["machines"].values()]
    assert metrics["official_score"] != official_score(since_2022)


def test_machines_of_several_years_have_no_official_score_together() -> None:
    metrics = evaluate_scores(make_table(("2021/fan/00", "2026/fan/00")), num_resamples=20)
    assert metrics["official_score"] is None
    assert "The machines are of [2021, 2026]" in metrics["reason"]
    assert metrics["machines"]["2026/fan/00"]["auc_source"] is not None


def test_every_metric_has_an_interval_and_lies_in_it() -> None:
    table = make_table(count=25)
    metrics = evaluate_scores(table, num_resamples=300)
    for values in (*metrics["machines"].values(), metrics["means"]):
        figures = {key: value for key, value in values.items() if isinstance(value, float)}
        assert len(figures) == 14  # 3 official, the AUC over all, 4 within domains, 6 of decisions
        assert values["intervals"].keys() == figures.keys()
        for key, value in figures.items():
            low, high = values["intervals"][key]
            assert low <= value <= high, key
            assert low < high, key


def test_a_machines_interval_is_the_quantile_of_its_resampled_metric() -> None:
    table = make_table()
    values = evaluate_scores(table, num_resamples=200, seed=4)["machines"]["2026/fan/00"]
    anomalous, domains, scores = bootstrap_input(table)["2026/fan/00"]
    resampled = resampled_metrics(
        "2026/fan/00", anomalous, domains.astype(str), scores, num_resamples=200, seed=4
    )
    for key in OFFICIAL:
        ends = np.quantile(resampled[key], [0.025, 0.975])
        assert values["intervals"][key] == pytest.approx(list(ends), abs=1e-12)


def test_decisions_are_judged_in_each_domain() -> None:
    table = make_table(("2026/fan/00",))
    values = evaluate_scores(table, num_resamples=0)["machines"]["2026/fan/00"]
    expected = decision_metrics(
        table.conditions == "anomaly", table.decisions.astype(int), table.domains
    )
    for domain, quality in expected._asdict().items():
        assert [values[f"{key}_{domain}"] for key in quality._fields] == list(quality)
    undecided = replace(table, decisions=column([None] * len(table)))
    values = evaluate_scores(undecided, num_resamples=0)["machines"]["2026/fan/00"]
    assert not [key for key in values if key.startswith(("precision", "recall", "f1"))]


def test_the_mean_is_the_harmonic_one_over_machines() -> None:
    metrics = evaluate_scores(make_table(), num_resamples=0)
    for key in ("auc_source", "pauc", "f1_target"):
        values = [metrics["machines"][machine][key] for machine in MACHINES]
        assert metrics["means"][key] == pytest.approx(2 / sum(1 / value for value in values))


@pytest.mark.parametrize(
    ("missing", "reason"),
    [("anomaly", "an anomalous clip"), ("normal", "a normal clip of the source domain")],
)
def test_a_machine_with_one_condition_has_no_metric_and_spoils_the_official_score(
    missing: str, reason: str
) -> None:
    table = make_table()
    kept = (table.machines != "2026/fan/00") | (table.conditions != missing)
    table = ScoreTable(**{name: values[kept] for name, values in vars(table).items()})
    metrics = evaluate_scores(table)
    values = metrics["machines"]["2026/fan/00"]
    assert [values[key] for key in ("auc_source", "auc_target", "pauc")] == [None] * 3
    assert "auc" not in values
    assert reason in values["reason"]
    assert metrics["machines"]["2026/valve/00"]["auc_source"] is not None
    assert metrics["official_score"] is None
    assert "2026/fan/00" in metrics["reason"]
    assert "2026/valve/00" not in metrics["reason"]


def test_one_empty_domain_leaves_an_auc_over_all_clips() -> None:
    table = make_table()
    kept = (table.machines != "2026/fan/00") | (table.domains == "source")
    table = ScoreTable(**{name: values[kept] for name, values in vars(table).items()})
    values = evaluate_scores(table)["machines"]["2026/fan/00"]
    assert "a normal clip of the target domain" in values["reason"]
    assert values["auc_source"] is None
    assert 0.5 < values["auc"] <= 1


def test_unlabelled_clips_are_scored_but_not_evaluated() -> None:
    metrics = evaluate_scores(make_table(conditions=None, domains=None))
    assert metrics["official_score"] is None
    for values in metrics["machines"].values():
        assert (values["num_normal"], values["num_anomalous"]) == (0, 0)
        assert values["auc_source"] is None
        assert "undefined" in values["reason"]
    assert metrics["false_alarms"] == []


@pytest.mark.parametrize("domain", ["source", None])
def test_unlabelled_clips_beside_labelled_ones_change_nothing(domain: str | None) -> None:
    table, extra = make_table(), make_table(count=3, conditions=None, domains=domain)
    extra = replace(
        extra,
        file_names=column([f"more_{name}" for name in extra.file_names]),
        anomaly_scores=extra.anomaly_scores + 100,
    )
    both = ScoreTable(
        **{
            name: np.concatenate([values, getattr(extra, name)])
            for name, values in vars(table).items()
        }
    )
    assert evaluate_scores(both, num_resamples=50) == evaluate_scores(table, num_resamples=50)


def test_no_clips_give_no_score_and_a_reason() -> None:
    metrics = evaluate_scores(make_table().select("2026/pump/00"))
    assert metrics["official_score"] is None
    assert metrics["machines"] == {}
    assert metrics["reason"].startswith("The official score needs all metrics.")


def test_a_csv_reads_back_exactly_with_everything_unknown_in_it(tmp_path: Path) -> None:
    table = make_table()
    table.anomaly_scores[:4] = [0.1 + 0.2, -1e-300, 5e20, np.nextafter(1, 2)]
    table.p_values[::3] = np.nan
    table.decisions[::3] = None
    table.domain_p_values[::2] = [0.1 + 0.2, 1.0]
    table.resolutions[::2, 1] = 1 / 11
    table.domains[1], table.conditions[2] = None, None
    table.file_names[5] = 'odd "name", with a comma.wav'
    table.write_csv(tmp_path / "scores.csv")
    assert_same(ScoreTable.read_csv(tmp_path / "scores.csv"), table)


def test_a_csv_of_a_version_without_p_values_by_domain_reads_as_before(tmp_path: Path) -> None:
    table = make_table()
    path = tmp_path / "scores.csv"
    table.write_csv(path)
    old = [",".join(line.split(",")[:7]) for line in path.read_text().splitlines()]
    path.write_text("\n".join(old) + "\n")
    assert old[0] == "machine,file_name,domain,condition,anomaly_score,p_value,decision"
    assert_same(ScoreTable.read_csv(path), table)


def test_an_empty_table_reads_back(tmp_path: Path) -> None:
    table = make_table().select("none")
    table.write_csv(tmp_path / "scores.csv")
    assert len(ScoreTable.read_csv(tmp_path / "scores.csv")) == 0


def test_a_csv_that_is_missing_or_not_ours_is_refused(tmp_path: Path) -> None:
    path = tmp_path / "scores.csv"
    with pytest.raises(FileNotFoundError, match=r"There is no .*scores\.csv\. Make it with score"):
        ScoreTable.read_csv(path)
    path.write_text("name,score\na.wav,1\n")
    with pytest.raises(ValueError, match=r"scores\.csv must have the columns \('machine', "):
        ScoreTable.read_csv(path)
    path.write_text("")
    with pytest.raises(ValueError, match="must have the columns"):
        ScoreTable.read_csv(path)


@pytest.mark.parametrize(
    ("row", "message"),
    [
        ("2026/fan/00,a.wav,source,normal,high,,", " cannot be read: .*'high'"),
        ("2026/fan/00,a.wav,source,normal,,,", "read: 2026/fan/00/a.wav has the score nan"),
        ("2026/fan/00,a.wav,source,normal,inf,,", "read: 2026/fan/00/a.wav has the score inf"),
        ("2026/fan/00,a.wav,source,normal,1.0,,yes", ", line 2: the decision of .* is 'yes'"),
    ],
)
def test_a_damaged_row_is_refused_with_the_file(tmp_path: Path, row: str, message: str) -> None:
    make_table().select("none").write_csv(tmp_path / "scores.csv")
    with (tmp_path / "scores.csv").open("a") as file:
        file.write(row + "\n")
    with pytest.raises(ValueError, match=rf"scores\.csv.*{message}"):
        ScoreTable.read_csv(tmp_path / "scores.csv")


@pytest.mark.parametrize(
    ("rows", "message"),
    [
        (["2026/fan/00,,source,normal,1.0,,"], "line 2, has no file_name"),
        ([",a.wav,source,normal,1.0,,"], "line 2, has no machine"),
        (["2026/fan/00"], "line 2, has no file_name"),
        (
            [f"2026/{m}/00,a.wav,source,normal,1.0,," for m in ("fan", "pump", "fan")],
            "2026/fan/00/a.wav twice, in lines 2 and 4",
        ),
        (
            ["2026/fan/00,a.wav,0,normal,1.0,,"],
            "the domain of 2026/fan/00/a.wav is '0', not one of 'source', 'target' or nothing",
        ),
        (["2026/fan/00,a.wav,source,anomalous,1.0,,"], "condition of .* is 'anomalous', not one"),
    ],
)
def test_rows_that_do_not_name_one_clip_each_are_refused_with_their_line(
    tmp_path: Path, rows: list[str], message: str
) -> None:
    make_table().select("none").write_csv(tmp_path / "scores.csv")
    with (tmp_path / "scores.csv").open("a") as file:
        file.write("\n".join(rows) + "\n")
    with pytest.raises(ValueError, match=rf"scores\.csv.*{message}"):
        ScoreTable.read_csv(tmp_path / "scores.csv")


def test_a_score_that_is_not_finite_is_refused_by_name() -> None:
    table = make_table()
    scores = table.anomaly_scores.copy()
    scores[3] = np.nan
    name = f"{table.machines[3]}/{table.file_names[3]}"
    with pytest.raises(ValueError, match=f"^{name} has the score nan; a score must be finite"):
        replace(table, anomaly_scores=scores)


def test_columns_of_different_lengths_are_refused() -> None:
    table = make_table()
    with pytest.raises(ValueError, match=r"must describe the same clips, got .*'p_values': 3"):
        replace(table, p_values=table.p_values[:3])


def test_metrics_are_shown_in_percent_with_the_interval() -> None:
    metrics = {
        "official_score": 0.51234,
        "official_score_interval": [0.4, 0.6],
        "machines": {
            "2026/fan/00": {"auc_source": 1.0, "auc_target": 0.25, "pauc": 0.5},
            "2020/valve/02": {"auc_source": None, "auc_target": None, "auc": 0.75, "pauc": 0.6},
        },
    }
    lines = format_metrics(metrics).splitlines()
    assert [line.split() for line in lines[1:3]] == [
        ["2026/fan/00", "100.00", "25.00", "50.00", "-"],
        ["2020/valve/02", "-", "-", "60.00", "75.00"],
    ]
    assert lines[3] == "official score 51.23, 95 % interval 40.00 to 60.00"
    assert len({len(line) for line in lines[:3]}) == 1  # columns stand below their names


def test_what_is_missing_is_shown_as_a_dash_with_the_reason() -> None:
    text = format_metrics(evaluate_scores(make_table(conditions=None)))
    assert "official score -\nThe official score needs all metrics. 2026/fan/00: " in text
    assert "nan" not in text.lower()
    assert "None" not in text


@pytest.fixture(scope="module")
def written(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, ScoreTable]:
    """Return a score folder and what was written into it."""
    folder, table = tmp_path_factory.mktemp("scores"), make_table()
    metrics = evaluate_scores(table, num_resamples=20) | {"seed": 0, "recipe": "quickstart"}
    write_score_folder(
        folder,
        table,
        metrics,
        calibration_scores={machine: [0.5, 0.25] for machine in MACHINES},
        thresholds=dict.fromkeys(MACHINES, THRESHOLD),
    )
    return folder, table


def test_a_score_folder_is_a_valid_submission(written: tuple[Path, ScoreTable]) -> None:
    folder, table = written
    expected = {key: table.select(name).file_names.tolist() for key, name in SECTIONS.items()}
    check_scores(folder, expected)
    for (machine_type, _), name in SECTIONS.items():
        clips = table.select(name)
        ending = f"{machine_type}_section_00_test.csv"
        assert read_anomaly_scores(folder / f"anomaly_score_{ending}") == dict(
            zip(clips.file_names, clips.anomaly_scores, strict=True)
        )
        assert read_decisions(folder / f"decision_result_{ending}") == dict(
            zip(clips.file_names, clips.decisions, strict=True)
        )


def test_a_score_folder_keeps_scores_metrics_calibration_and_plots(
    written: tuple[Path, ScoreTable],
) -> None:
    folder, table = written
    assert_same(ScoreTable.read_csv(folder / "scores.csv"), table)
    again = evaluate_scores(ScoreTable.read_csv(folder / "scores.csv"), num_resamples=20)
    assert read_metrics(folder) == again | {"seed": 0, "recipe": "quickstart"}
    calibration = read_json(folder / "calibration_scores.json")
    assert calibration == {machine: [0.5, 0.25] for machine in MACHINES}
    plots = sorted(path.name for path in (folder / "plots").iterdir())
    assert plots == ["2026_fan_00.png", "2026_valve_00.png", "calibration.png"]


def test_a_score_folders_metrics_are_printed_again(
    written: tuple[Path, ScoreTable],
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    folder, _ = written
    for print_as in ("table", "latex"):
        words = ["evaluation", "--scores", str(folder), "--print_as", print_as]
        monkeypatch.setattr("sys.argv", words)
        evaluation.main()
        assert capsys.readouterr().out == format_metrics(read_metrics(folder), print_as) + "\n"


def test_a_machine_without_a_threshold_gets_no_decisions(tmp_path: Path) -> None:
    table = make_table()
    decisions = table.decisions.copy()
    decisions[table.machines == "2026/fan/00"] = None
    table = replace(table, decisions=decisions)
    write_score_folder(
        tmp_path,
        table,
        evaluate_scores(table, num_resamples=0),
        calibration_scores={"2026/fan/00": [], "2026/valve/00": [0.5]},
        thresholds={"2026/fan/00": None, "2026/valve/00": 0.5},
    )
    assert {path.name for path in tmp_path.glob("*_test.csv")} == {
        "anomaly_score_fan_section_00_test.csv",
        "anomaly_score_valve_section_00_test.csv",
        "decision_result_valve_section_00_test.csv",
    }


def test_metrics_that_are_missing_are_asked_for(tmp_path: Path) -> None:
    with pytest.raises(FileNotFoundError, match=r"no .*metrics\.json\. Make it with score\.py"):
        read_metrics(tmp_path)

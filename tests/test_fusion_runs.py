"""score.py fuses score folders and run folders, searches weights, and scores what it made."""

import json
import shutil
from pathlib import Path

import numpy as np
import pytest

import score
import train
from data_scripts.factory import simulate_factory
from data_scripts.near_far import decoded, load_near_far
from nearfar.evaluation import ScoreTable, read_metrics
from nearfar.files import read_json
from nearfar.fusion import ScoreFusion
from nearfar.fusion_run import read_fusion, write_fusion_run
from nearfar.hub import read_run
from tests.scripts import TINY_RECIPE, run_script


@pytest.fixture(scope="module")
def folders(factory_dir: Path, tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    """Two systems of the same held-out clips, as run folders and as score folders."""
    root = tmp_path_factory.mktemp("fusion")
    made = {}
    with pytest.MonkeyPatch.context() as monkeypatch:
        for name, layers in (("first", 1), ("second", 2)):
            run, scores = root / "runs" / name, root / "scores" / name
            words = ["--data_dir", factory_dir, "--output_dir", run, *TINY_RECIPE]
            words += ["--no_training", "--layers", layers]
            run_script(train, words, monkeypatch)
            words = ["--model", run, "--data_dir", factory_dir, "--output_dir", scores]
            run_script(score, [*words, "--num_resamples", 20], monkeypatch)
            made |= {f"run {name}": run, f"scores {name}": scores}
    return made


def fuse(kind: str, folders: dict[str, Path], output_dir: Path, *words: object) -> None:
    members = [folders[f"{kind} first"], folders[f"{kind} second"]]
    with pytest.MonkeyPatch.context() as monkeypatch:
        arguments = ["--fuse", *members, "--output_dir", output_dir, *words]
        run_script(score, [*arguments, "--num_resamples", 20], monkeypatch)


@pytest.fixture(scope="module")
def fused(folders: dict[str, Path], tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    """The two systems fused 0.3 : 0.7, as a score folder and as a run folder."""
    root = tmp_path_factory.mktemp("fused")
    for kind in ("scores", "run"):
        fuse(kind, folders, root / kind, "--weights", 0.3, 0.7)
    return {kind: root / kind for kind in ("scores", "run")}


def test_a_fused_score_folder_holds_the_weighted_sum_of_z_scores(
    folders: dict[str, Path], fused: dict[str, Path]
) -> None:
    table = ScoreTable.read_csv(fused["scores"] / "scores.csv")
    expected = np.zeros(len(table))
    for weight, name in ((0.3, "first"), (0.7, "second")):
        member = ScoreTable.read_csv(folders[f"scores {name}"] / "scores.csv")
        held_out = read_json(folders[f"scores {name}"] / "calibration_scores.json")
        keys = zip(member.machines, member.file_names, strict=True)
        scores = dict(zip(keys, member.anomaly_scores, strict=True))
        for row, key in enumerate(zip(table.machines, table.file_names, strict=True)):
            normals = np.array(held_out[key[0]]["anomaly_scores"])
            expected[row] += weight * (scores[key] - normals.mean()) / normals.std(ddof=1)
    np.testing.assert_allclose(table.anomaly_scores, expected, rtol=1e-9)
    calibration = read_json(fused["scores"] / "calibration_scores.json")
    for machine in table.machine_names:
        assert len(calibration[machine]["file_names"]) == 4
        assert calibration[machine]["rule"]["scores"] == "held_out"
        chosen = table.select(machine)
        assert set(chosen.p_values) <= {k / 5 for k in range(1, 6)}
        threshold = np.quantile(calibration[machine]["anomaly_scores"], 0.9)
        assert (chosen.decisions == (chosen.anomaly_scores > threshold)).all()


def test_a_fusions_run_folder_scores_as_the_fused_score_folders(
    fused: dict[str, Path], factory_dir: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    assert read_run(fused["run"])["kind"] == "fusion"
    words = ["--model", fused["run"], "--data_dir", factory_dir, "--output_dir", tmp_path]
    run_script(score, [*words, "--num_resamples", 0], monkeypatch)
    table, other = (
        ScoreTable.read_csv(folder / "scores.csv") for folder in (tmp_path, fused["scores"])
    )
    assert table.file_names.tolist() == other.file_names.tolist()
    np.testing.assert_allclose(table.anomaly_scores, other.anomaly_scores, rtol=1e-6, atol=1e-9)
    np.testing.assert_array_equal(table.p_values, other.p_values)
    assert table.decisions.tolist() == other.decisions.tolist()
    assert read_metrics(tmp_path)["frozen_encoder"] is True


def test_a_minimum_of_the_members_is_kept_by_both_kinds_of_folder(
    folders: dict[str, Path], tmp_path: Path
) -> None:
    for kind in ("scores", "run"):
        fuse(kind, folders, tmp_path / kind, "--combination", "minimum")
        assert read_fusion(tmp_path / kind)[0].combination == "minimum"
    assert "The minimum of 2 systems' anomaly scores" in (tmp_path / "run/README.md").read_text()
    least = ScoreTable.read_csv(tmp_path / "scores" / "scores.csv").anomaly_scores
    normalized = []
    for name in ("first", "second"):
        member = ScoreTable.read_csv(folders[f"scores {name}"] / "scores.csv")
        held_out = read_json(folders[f"scores {name}"] / "calibration_scores.json")
        scales = [np.array(held_out[machine]["anomaly_scores"]) for machine in member.machines]
        mean, deviation = np.array([(s.mean(), s.std(ddof=1)) for s in scales]).T
        normalized.append((member.anomaly_scores - mean) / deviation)
    np.testing.assert_allclose(least, np.minimum(*normalized), rtol=1e-9)


def test_a_clip_scores_alone_in_a_fusion_as_among_all(
    fused: dict[str, Path], factory_dir: Path
) -> None:
    table = ScoreTable.read_csv(fused["scores"] / "scores.csv")
    scorer = score.load_scorer(fused["run"])
    clips = decoded(load_near_far(factory_dir)["test"])
    for index in (0, len(clips) - 1):
        alone = scorer.score([clips[index]])
        rows = (table.machines == clips[index]["machine"]) & (
            table.file_names == clips[index]["file_name"]
        )
        np.testing.assert_allclose(alone.anomaly_scores, table.anomaly_scores[rows], atol=1e-3)


def test_a_fusions_run_folder_is_whole_by_itself(
    folders: dict[str, Path], fused: dict[str, Path], tmp_path: Path
) -> None:
    moved = tmp_path / "elsewhere"
    shutil.copytree(fused["run"], moved)
    members = read_run(moved)["members"]
    assert members == ["members/1_first", "members/2_second"]
    assert score.load_scorer(moved).fusion.weights == (0.3, 0.7)
    assert not list(moved.rglob("trainer_state"))
    original = folders["run first"] / "model.safetensors"
    linked = fused["run"] / members[0] / "model.safetensors"
    assert original.samefile(linked)  # it takes no room twice
    for path in [moved / "run.json", moved / "fusion.json", moved / "README.md"]:
        assert str(folders["run first"].parent) not in path.read_text()
    card = (moved / "README.md").read_text()
    assert "| `members/2_second` | 0.7 |" in card
    assert "$" not in card
    (moved / members[1] / "run.json").unlink()
    with pytest.raises(FileNotFoundError, match=r"holds no run\.json"):
        score.load_scorer(moved)


def test_a_fusions_run_folder_tells_the_false_alarms_of_its_fused_scores(
    fused: dict[str, Path],
) -> None:
    rows = read_metrics(fused["run"])["false_alarms"]
    scorer = score.load_scorer(fused["run"])
    card = (fused["run"] / "README.md").read_text()
    assert len(scorer.machines) == 2
    for machine in scorer.machines:
        told = scorer.calibration(machine).untouched_p_values()
        shares = {
            row["nominal"]: row["measured"]
            for row in rows
            if (row["machine"], row["domain"]) == (machine, "all")
        }
        assert shares == {
            rate: float((told.p_values <= rate).double().mean()) for rate in (0.01, 0.05, 0.1)
        }
        assert f"| {machine} | all | 4 | " in card


def test_training_a_member_again_leaves_the_fusion_as_it_is(
    folders: dict[str, Path], tmp_path: Path
) -> None:
    member = tmp_path / "member"
    shutil.copytree(folders["run first"], member)
    fusion = ScoreFusion((0.5, 0.5))
    write_fusion_run(tmp_path / "fusion", [member, folders["run second"]], fusion)
    kept = tmp_path / "fusion" / "members" / "1_member" / "reference_bank.json"
    before = kept.read_text()
    bank = score.load_scorer(folders["run second"]).bank
    bank.save_pretrained(member)
    assert (member / "reference_bank.json").read_text() != before
    assert kept.read_text() == before


def test_a_fusion_of_fusions_scores(
    folders: dict[str, Path], fused: dict[str, Path], factory_dir: Path, tmp_path: Path
) -> None:
    write_fusion_run(tmp_path, [fused["run"], folders["run first"]], ScoreFusion((0.5, 0.5)))
    clip = decoded(load_near_far(factory_dir)["test"])[0]
    table = score.load_scorer(tmp_path).score([clip])
    assert np.isfinite(table.anomaly_scores).all()
    assert table.p_values[0] in {k / 5 for k in range(1, 6)}


def test_searched_weights_are_reported_nested_first_and_can_be_taken_over(
    folders: dict[str, Path], tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    words = ["--search_weights", "--search_step", 0.25, "--normalization", "quantile"]
    with caplog.at_level("INFO"):
        fuse("scores", folders, tmp_path / "scores", *words)
    fusion, search = read_fusion(tmp_path / "scores")
    assert fusion.normalization == "quantile"
    assert search is not None
    assert list(search)[:2] == ["nested", "optimistic"]
    assert set(search["nested_weights"]) == set(
        ScoreTable.read_csv(tmp_path / "scores" / "scores.csv").machine_names
    )
    metrics = read_metrics(tmp_path / "scores")
    assert metrics["official_score"] == pytest.approx(search["optimistic"]["estimate"])
    lines = [r.getMessage() for r in caplog.records if r.getMessage().startswith("nested")]
    assert f"{100 * search['nested']['estimate']:.2f}" in lines[0]
    fuse("run", folders, tmp_path / "run", "--weights_from", tmp_path / "scores")
    taken, provenance = read_fusion(tmp_path / "run")
    assert (taken.weights, taken.normalization) == (fusion.weights, "quantile")
    assert provenance == search
    assert "labelled development clips" in (tmp_path / "run" / "README.md").read_text()


def test_a_bayesian_search_is_made_by_the_command_too(
    folders: dict[str, Path], tmp_path: Path
) -> None:
    pytest.importorskip("optuna", reason="the extra fusion is not installed")
    words = ["--search_weights", "--search_method", "bayesian", "--num_trials", 8]
    fuse("scores", folders, tmp_path, *words, "--search_seed", 1)
    fusion, search = read_fusion(tmp_path)
    assert sum(fusion.weights) == pytest.approx(1)
    assert search is not None
    assert (search["method"], search["num_trials"], search["seed"]) == ("bayesian", 8, 1)
    assert read_metrics(tmp_path)["official_score"] == pytest.approx(
        search["optimistic"]["estimate"]
    )


@pytest.mark.parametrize(
    ("kind", "words", "message"),
    [
        ("scores", ["--weights", 0.5, 0.6], r"must have the sum 1"),
        ("run", ["--weights", 0.5, 0.6], r"must have the sum 1"),
        ("scores", ["--weights", 0.2, 0.3, 0.5], r"3 weights came for 2 folders"),
        ("scores", [], r"one of --weights, --weights_from, --search_weights and"),
        ("scores", ["--weights", 0.5, 0.5, "--search_weights"], r"one of --weights"),
        ("run", ["--combination", "minimum", "--weights", 0.5, 0.5], r"Leave --weights and"),
        ("run", ["--search_weights"], r"Weights are searched on score folders"),
        ("scores", ["--search_weights", "--ground_truth", "."], r"never on an evaluation set's"),
        ("scores", ["--weights", 0.5, 0.5, "--model", "."], r"Give either --model"),
    ],
)
def test_arguments_that_do_not_go_together_are_refused_and_nothing_is_written(
    folders: dict[str, Path], tmp_path: Path, kind: str, words: list[object], message: str
) -> None:
    with pytest.raises(ValueError, match=message):
        fuse(kind, folders, tmp_path / "out", *words)
    assert not (tmp_path / "out").exists()


@pytest.mark.parametrize("kind", ["scores", "run"])
def test_a_fusion_does_not_overwrite_its_member(folders: dict[str, Path], kind: str) -> None:
    member = folders[f"{kind} first"]
    before = sorted(path.name for path in member.iterdir())
    with pytest.raises(ValueError, match="is a member of the fusion"):
        fuse(kind, folders, member, "--weights", 0.5, 0.5)
    assert sorted(path.name for path in member.iterdir()) == before


def test_a_member_is_fused_once(folders: dict[str, Path], tmp_path: Path) -> None:
    twice = dict.fromkeys(("scores first", "scores second"), folders["scores first"])
    with pytest.raises(ValueError, match=r"more than once\. Give each member once"):
        fuse("scores", twice, tmp_path / "out", "--weights", 0.5, 0.5)


def test_a_fusion_has_a_drift_but_neither_embeddings_nor_maps(
    folders: dict[str, Path], fused: dict[str, Path], factory_dir: Path, tmp_path: Path
) -> None:
    weights = ["--weights", 0.3, 0.7]
    fuse("scores", folders, tmp_path / "drift", *weights, "--plots", "drift")
    drawn = [path.name for path in (tmp_path / "drift" / "plots").glob("*_drift.png")]
    assert len(drawn) == len(read_metrics(tmp_path / "drift")["machines"])
    with pytest.raises(ValueError, match="--plots maps needs a model and its clips"):
        fuse("scores", folders, tmp_path / "maps", *weights, "--plots", "maps")
    arguments = ["--model", fused["run"], "--data_dir", factory_dir, "--plots", "embeddings"]
    with (
        pytest.raises(ValueError, match="--plots embeddings needs one model"),
        pytest.MonkeyPatch.context() as monkeypatch,
    ):
        run_script(score, [*arguments, "--output_dir", tmp_path / "maps"], monkeypatch)
    assert not (tmp_path / "maps").exists()


def test_scores_of_different_clips_or_without_calibration_are_refused(
    folders: dict[str, Path], tmp_path: Path
) -> None:
    lost = tmp_path / "lost"
    shutil.copytree(folders["scores second"], lost)
    lines = (lost / "scores.csv").read_text().splitlines(keepends=True)
    (lost / "scores.csv").write_text("".join(lines[:-1]))
    with pytest.raises(ValueError, match=r"hold scores of different clips \(24 and 23\)"):
        fuse("scores", folders | {"scores second": lost}, tmp_path / "out", "--weights", 0.5, 0.5)
    (lost / "scores.csv").write_text("".join(lines))
    (lost / "calibration_scores.json").write_text("{}")
    with pytest.raises(ValueError, match="has no calibration scores of"):
        fuse("scores", folders | {"scores second": lost}, tmp_path / "out", "--weights", 0.5, 0.5)


def test_an_evaluation_set_is_scored_with_the_ground_truth_of_its_files(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    data, run, scores = (tmp_path / name for name in ("data", "run", "scores"))
    simulate_factory(
        data,
        num_machines=1,
        eval_machines=1,
        seed=5,
        source_train=8,
        target_train=4,
        test_per_group=3,
        seconds=1.0,
        num_workers=1,
    )
    words = ["--data_dir", data, "--output_dir", run, *TINY_RECIPE, "--no_training"]
    run_script(train, [*words, "--train_subsets", "eval_train"], monkeypatch)
    words = ["--model", run, "--data_dir", data, "--score_subsets", "eval_test"]
    words += ["--output_dir", scores, "--num_resamples", 20]
    run_script(score, words, monkeypatch)
    metrics = read_metrics(scores)
    assert metrics["official_score"] is None  # the names tell nothing
    run_script(score, [*words, "--ground_truth", data, "--print_as", "json"], monkeypatch)
    metrics = read_metrics(scores)
    (machine,) = metrics["machines"]
    assert (metrics["machines"][machine]["num_normal"], metrics["official_score"] is None) == (
        6,
        False,
    )
    printed = capsys.readouterr().out
    assert (
        json.loads(printed[printed.rindex("\n{\n") :])["official_score"]
        == (metrics["official_score"])
    )
    assert len(metrics["false_alarms"]) == 9

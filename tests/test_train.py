"""The main road: recordings in, a complete run folder out; interrupted and resumed exactly."""

import csv
import json
import shutil
import signal
import subprocess
import sys
import time
from pathlib import Path

import numpy as np
import pytest
import soundfile
import torch
import yaml
from huggingface_hub.errors import StrictDataclassError
from transformers import pipeline

import score
import train
from data_scripts.near_far import decoded, load_near_far
from modeling import AsdFeatureExtractor, ReferenceBank
from nearfar import training
from nearfar.evaluation import ScoreTable
from nearfar.hub import read_run
from nearfar.training import TrainingInterruptedError
from tests.scripts import TINY_RECIPE, assert_two_processes_train_as_one, run_script, weights
from tests.tiny import ENCODERS, TINY_EAT

ROOT = Path(__file__).resolve().parents[1]


@pytest.fixture(scope="module")
def trained(factory_dir: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A run folder, trained for a few updates on the simulated factory."""
    folder = tmp_path_factory.mktemp("runs") / "tiny"
    with pytest.MonkeyPatch.context() as monkeypatch:
        arguments = ["--data_dir", factory_dir, "--output_dir", folder, *TINY_RECIPE]
        run_script(train, [*arguments, "--max_steps", 4], monkeypatch)
    return folder


@pytest.fixture(scope="module")
def scored(trained: Path, factory_dir: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The score folder of `trained`."""
    folder = tmp_path_factory.mktemp("scores") / "tiny"
    with pytest.MonkeyPatch.context() as monkeypatch:
        arguments = ["--model", trained, "--data_dir", factory_dir, "--output_dir", folder]
        arguments += ["--plots", "drift", "embeddings", "maps"]
        run_script(score, [*arguments, "--num_resamples", 50], monkeypatch)
    return folder


def test_a_run_folder_is_complete_and_holds_nothing_local(trained: Path) -> None:
    names = {path.name for path in trained.iterdir()}
    assert {
        *("run.json", "config.json", "model.safetensors", "preprocessor_config.json"),
        *("reference_bank.safetensors", "reference_bank.json", "README.md", "recipe.yaml"),
        *("metrics.json", "modeling_asd.py", "pipeline_asd.py", "reference_bank.py"),
    } <= names
    assert read_run(trained)["kind"] == "model"
    for path in trained.iterdir():
        if path.suffix in {".json", ".yaml", ".md"}:
            assert str(trained.parent) not in path.read_text()
            assert str(Path.home()) + "/" not in path.read_text()


def test_references_and_calibration_clips_are_disjoint_training_clips(
    trained: Path, factory_dir: Path
) -> None:
    bank = ReferenceBank.from_pretrained(trained)
    clips = load_near_far(factory_dir)["train"]
    assert len(bank.machines) == 2
    for machine in bank.machines:
        rule = bank.rule(machine)
        assert rule is not None
        assert rule["scores"] == "held_out"
        kept_back = len(bank.calibration_scores(machine))
        assert kept_back == 4  # 20 % of 14 source clips and of 6 target clips, rounded
        references = bank.nearest_references(torch.randn(1, 1, 1, 32), machine, k=len(clips))
        assert len(references[0]) == 20 - kept_back


def test_the_log_has_a_line_for_every_update(trained: Path) -> None:
    lines = (trained / "trainer_state" / "log.jsonl").read_text().splitlines()
    steps = [json.loads(line)["step"] for line in lines if "step" in json.loads(line)]
    assert steps == [1, 2, 3, 4]


def test_score_writes_challenge_files_for_every_machine(scored: Path) -> None:
    metrics = json.loads((scored / "metrics.json").read_text())
    assert len(metrics["machines"]) == 2
    assert 0 < metrics["official_score"] < 1
    low, high = metrics["official_score_interval"]
    assert low <= metrics["official_score"] <= high
    table = ScoreTable.read_csv(scored / "scores.csv")
    for machine in table.machine_names:
        machine_type = machine.split("/")[1]
        with (scored / f"anomaly_score_{machine_type}_section_00_test.csv").open() as file:
            rows = list(csv.reader(file))
        clips = table.select(machine)
        written = {name: float(value) for name, value in rows}
        assert written == dict(zip(clips.file_names, clips.anomaly_scores, strict=True))
        assert (scored / f"decision_result_{machine_type}_section_00_test.csv").is_file()
        for plot in ("", "_drift", "_embeddings", "_map"):
            assert (scored / "plots" / f"2026_{machine_type}_00{plot}.png").stat().st_size > 5000


def test_a_clip_scores_alone_as_in_score_py(trained: Path, scored: Path, factory_dir: Path) -> None:
    table = ScoreTable.read_csv(scored / "scores.csv")
    scorer = score.load_scorer(trained)
    clips = decoded(load_near_far(factory_dir)["test"])
    for index in (0, len(clips) - 1):
        alone = scorer.score([clips[index]])
        rows = (table.machines == clips[index]["machine"]) & (
            table.file_names == clips[index]["file_name"]
        )
        np.testing.assert_allclose(alone.anomaly_scores, table.anomaly_scores[rows], atol=1e-5)


def test_the_pipeline_gives_the_verdict_of_score_py(
    trained: Path, scored: Path, factory_dir: Path
) -> None:
    pipe = pipeline("anomalous-sound-detection", model=str(trained), trust_remote_code=True)
    table = ScoreTable.read_csv(scored / "scores.csv")
    path = sorted((factory_dir / "dev_data" / "raw").glob("*/test/*.wav"))[0]
    row = np.flatnonzero(
        (table.file_names == path.name) & (table.machines == f"2026/{path.parts[-3]}/00")
    )[0]
    verdict = pipe(str(path), machine=path.parts[-3], map=True)
    assert np.sum(verdict["map"]["values"]) == pytest.approx(verdict["anomaly_score"], rel=1e-3)
    assert (verdict["map"]["method"], verdict["map"]["neutral"]) == ("additive", "profile")
    assert verdict["anomaly_score"] == pytest.approx(table.anomaly_scores[row], abs=1e-5)
    assert verdict["p_value"] == pytest.approx(table.p_values[row])
    assert int(verdict["anomalous"]) == int(table.decisions[row])
    assert len(verdict["nearest_references"]) == 3


def test_interrupted_and_resumed_is_as_never_interrupted(
    factory_dir: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    arguments = ["--data_dir", factory_dir, *TINY_RECIPE, "--max_steps", 5]
    # 32 training clips: 4 batches an epoch, 2 updates an epoch; the stop falls inside an epoch.
    arguments += ["--gradient_accumulation_steps", 2, "--warmup_steps", 2]
    run_script(train, [*arguments, "--output_dir", tmp_path / "whole"], monkeypatch)

    calls = []
    with monkeypatch.context() as patched:
        patched.setattr(
            training, "_any_process", lambda *_, **__: calls.append(1) or len(calls) == 3
        )
        with pytest.raises(TrainingInterruptedError, match="resume_from_checkpoint latest"):
            run_script(train, [*arguments, "--output_dir", tmp_path / "halves"], patched)
    assert not (tmp_path / "halves" / "run.json").exists()
    resumed = [*arguments, "--output_dir", tmp_path / "halves"]
    run_script(train, [*resumed, "--resume_from_checkpoint", "latest"], monkeypatch)

    whole, halves = weights(tmp_path / "whole"), weights(tmp_path / "halves")
    assert whole.keys() == halves.keys()
    for name, tensor in whole.items():
        assert torch.equal(tensor, halves[name]), name


def test_resuming_on_other_clips_is_refused(
    trained: Path, factory_dir: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    data = tmp_path / "data"
    shutil.copytree(factory_dir, data)
    next(data.rglob("train/*.wav")).unlink()
    arguments = ["--data_dir", data, "--output_dir", tmp_path / "run", *TINY_RECIPE]
    arguments += ["--resume_from_checkpoint", trained / "trainer_state" / "step_000004"]
    with pytest.raises(ValueError, match="differ from those"):
        run_script(train, [*arguments, "--max_steps", 6], monkeypatch)


def test_resuming_on_other_clips_of_the_same_names_is_refused(
    trained: Path, factory_dir: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    data = tmp_path / "data"
    shutil.copytree(factory_dir, data)
    for path in data.rglob("train/*.wav"):
        samples, rate = soundfile.read(path, dtype="int16")
        soundfile.write(path, samples // 2, rate, subtype="PCM_16")
    arguments = ["--data_dir", data, "--output_dir", tmp_path / "run", *TINY_RECIPE]
    arguments += ["--resume_from_checkpoint", trained / "trainer_state" / "step_000004"]
    with pytest.raises(ValueError, match="differ from those"):
        run_script(train, [*arguments, "--max_steps", 6], monkeypatch)


def test_without_calibration_clips_there_are_scores_but_no_decisions(
    factory_dir: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    run, scores = tmp_path / "run", tmp_path / "scores"
    arguments = ["--data_dir", factory_dir, "--output_dir", run, *TINY_RECIPE]
    run_script(train, [*arguments, "--held_out_share", 0, "--max_steps", 1], monkeypatch)
    run_script(
        score, ["--model", run, "--data_dir", factory_dir, "--output_dir", scores], monkeypatch
    )
    assert list(scores.glob("anomaly_score_*.csv"))
    assert not list(scores.glob("decision_result_*.csv"))
    assert np.isnan(ScoreTable.read_csv(scores / "scores.csv").p_values).all()


def test_the_rule_of_the_thresholds_is_chosen_before_training(
    factory_dir: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    arguments = ["--data_dir", factory_dir, "--output_dir", tmp_path, *TINY_RECIPE]
    arguments += ["--no_training", "--threshold", "gamma"]
    with pytest.raises(ValueError, match=r"threshold_quantile=95\.0 must lie between"):
        run_script(train, [*arguments, "--threshold_quantile", 95], monkeypatch)
    assert not list(tmp_path.iterdir())
    run_script(train, [*arguments, "--threshold_quantile", 0.8], monkeypatch)
    bank = ReferenceBank.from_pretrained(tmp_path)
    for machine in bank.machines:
        assert bank.rule(machine) == {"name": "gamma", "quantile": 0.8, "scores": "held_out"}
    assert "the 0.8 quantile" in " ".join((tmp_path / "README.md").read_text().split())


def test_a_loss_that_is_not_finite_stops_training(
    factory_dir: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    arguments = ["--data_dir", factory_dir, "--output_dir", tmp_path, *TINY_RECIPE]
    arguments += ["--learning_rate", "1e30", "--max_steps", 9, "--max_grad_norm", "1e30"]
    with pytest.raises(FloatingPointError, match="lower learning_rate"):
        run_script(train, arguments, monkeypatch)


@pytest.mark.parametrize(
    ("encoder", "options"),
    [
        ("eat", {"pooling": "cls", "layers": [1, 2]}),
        ("fisher", {"pooling": "cls", "pooling_options": {"keep_bands": True}, "join_bands": True}),
        (
            "beats",
            {
                "pooling": "attentive_statistics",
                "scored_pooling": "rdp",
                "scored_pooling_options": {"keep_bands": True},
            },
        ),
    ],
)
def test_every_encoder_trains_by_every_kind_of_pooling_and_is_scored(
    encoder, options, factory_dir: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    described = {"encoder_config": ENCODERS[encoder]} | options
    arguments = ["--data_dir", factory_dir, *TINY_RECIPE, "--max_steps", 1]
    for name, value in described.items():
        arguments += [f"--{name}", *(value if isinstance(value, list) else [json.dumps(value)])]
    arguments = [str(word).strip('"') for word in arguments]
    run_script(train, [*arguments, "--output_dir", tmp_path / "run"], monkeypatch)
    scorer = score.load_scorer(tmp_path / "run")
    clips = decoded(load_near_far(factory_dir)["test"])
    assert np.isfinite(scorer.score([clips[0]]).anomaly_scores).all()
    config = json.loads((tmp_path / "run" / "config.json").read_text())
    assert {name: config[name] for name in options} == options
    extractor = json.loads((tmp_path / "run" / "preprocessor_config.json").read_text())
    assert extractor["min_num_samples"] == (400 if encoder == "eat" else 2_800)


def test_layers_that_do_not_train_stay_as_they_were(
    factory_dir: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    arguments = ["--data_dir", factory_dir, *TINY_RECIPE, "--max_steps", 1]
    runs = []
    for trainable in (0, 1):
        folder = tmp_path / str(trainable)
        options = ["--output_dir", folder, "--trainable_layers", trainable]
        run_script(train, [*arguments, *options], monkeypatch)
        runs.append(weights(folder))
    frozen, tuned = runs
    moved = {name for name, tensor in frozen.items() if not torch.equal(tensor, tuned[name])}
    deepest = {name for name in frozen if name.startswith("asd.encoder.layers.1.")}
    assert deepest
    # The head saw another encoder, so it may differ.
    assert deepest <= moved <= deepest | {"head.weight"}


def test_without_training_the_encoder_is_scored_as_it_is(
    factory_dir: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    arguments = ["--data_dir", factory_dir, *TINY_RECIPE, "--no_training"]
    run_script(train, [*arguments, "--output_dir", tmp_path / "a"], monkeypatch)
    run_script(train, [*arguments, "--output_dir", tmp_path / "b"], monkeypatch)
    a, b = weights(tmp_path / "a"), weights(tmp_path / "b")
    assert all(torch.equal(a[name], b[name]) for name in a)
    assert json.loads((tmp_path / "a" / "metrics.json").read_text())["frozen_encoder"] is True


def test_clips_are_cut_as_the_authors_did_where_it_is_asked_for(
    factory_dir: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    lengths = ("--clip_seconds", 0.5, "--target_length", 64, "--encoder_config")
    arguments = ["--data_dir", factory_dir, *TINY_RECIPE, "--no_training"]
    arguments += ["--output_dir", tmp_path, *lengths]
    run_script(train, [*arguments, json.dumps(TINY_EAT)], monkeypatch)
    saved = json.loads((tmp_path / "config.json").read_text())
    assert saved["encoder_config"]["target_length"] == 64
    assert AsdFeatureExtractor.from_pretrained(tmp_path).clip_seconds == 0.5
    clips = decoded(load_near_far(factory_dir)["test"])
    scorer = score.load_scorer(tmp_path)
    near = clips[0]["near"]
    assert len(near) == 16_000
    heard = [
        scorer.feature_extractor(piece, sampling_rate=16_000, return_tensors="pt")
        for piece in (near, near[:8_000])
    ]
    assert torch.equal(heard[0]["near_values"], heard[1]["near_values"])
    assert scorer.bank.extractor_settings["clip_seconds"] == 0.5


def test_real_recordings_without_attributes_train_on_pseudo_labels(
    recordings_dir: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    data = tmp_path / "fan"
    (data / "train").mkdir(parents=True)
    (data / "test").mkdir()
    normal = sorted((recordings_dir / "fan" / "train").glob("*.wav"))
    for path in normal[:60]:
        (data / "train" / path.name).symlink_to(path)
    for path in [*normal[60:], *(recordings_dir / "fan" / "test").glob("*.wav")]:
        (data / "test" / path.name).symlink_to(path)
    run, scores = tmp_path / "run", tmp_path / "scores"
    arguments = ["--data_dir", tmp_path, "--year", 2020, "--output_dir", run, *TINY_RECIPE]
    run_script(train, [*arguments, "--max_steps", 2, "--num_pseudo_labels", 4], monkeypatch)
    assert json.loads((run / "metrics.json").read_text())["num_classes"] == 4
    run_script(score, ["--model", run, "--data_dir", tmp_path, "--output_dir", scores], monkeypatch)
    metrics = json.loads((scores / "metrics.json").read_text())
    machine = metrics["machines"]["2020/fan/00"]
    assert machine["auc_source"] is None
    assert 0 <= machine["auc"] <= 1
    assert metrics["official_score"] == pytest.approx((machine["auc"] + machine["pauc"]) / 2)
    assert (machine["num_normal"], machine["num_anomalous"]) == (15, 1)

    with pytest.raises(ValueError, match="Allow --pseudo_labels"):
        run_script(train, [*arguments, "--pseudo_labels", "never"], monkeypatch)


@pytest.mark.parametrize(
    ("extra", "message"),
    [
        (["--train_subsets", "eval_train"], "eval_train"),
        (["--encoder_checkpoint", "missing.pt"], "no encoder checkpoint"),
        (["--num_classes", "80"], "expects 80 proxy classes"),
        (["--layers", "1", "3"], "layers 1 to 2"),
        (["--target_length", "64"], "target_length=64 is for EAT and FISHER"),
        (["--clip_seconds", "0.01"], "clip_seconds=0.01 is less than"),
        (["--head_options", '{"m": 0.5}'], "unknown to head"),
        (["--label_parts", "colour"], "label_parts"),
        (["--held_out_share", "1.5"], "held_out_share"),
        (["--report_to", "wandb"], "wandb"),
        (["--resume_from_checkpoint", "latest"], "no saved state"),
        (["--machine_types", "turbine"], "turbine"),
        (["--detector", "knm"], "detector"),
    ],
)
def test_a_mistake_is_answered_and_nothing_is_half_written(
    factory_dir: Path,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    extra: list[str],
    message: str,
) -> None:
    arguments = ["--data_dir", factory_dir, "--output_dir", tmp_path / "run", *TINY_RECIPE]
    with pytest.raises((ValueError, OSError, StrictDataclassError), match=message):
        run_script(train, [*arguments, "--max_steps", 1, *extra], monkeypatch)
    assert not (tmp_path / "run" / "run.json").exists()
    assert not (tmp_path / "run" / "model.safetensors").exists()


def test_a_full_disk_leaves_the_run_folder_as_it_was(
    trained: Path, factory_dir: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    run = tmp_path / "run"
    shutil.copytree(trained, run)
    before = {path.name: path.read_bytes() for path in run.iterdir() if path.is_file()}

    def fail(*_: object, **__: object) -> None:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(ReferenceBank, "save_pretrained", fail)
    arguments = ["--data_dir", factory_dir, "--output_dir", run, *TINY_RECIPE, "--no_training"]
    with pytest.raises(OSError, match="No space left"):
        run_script(train, arguments, monkeypatch)
    assert {p.name: p.read_bytes() for p in run.iterdir() if p.is_file()} == before


def test_scoring_a_machine_that_the_bank_does_not_hold_says_what_it_holds(
    trained: Path, factory_dir: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    raw = tmp_path / "dev_data" / "raw"
    machine = next((factory_dir / "dev_data" / "raw").iterdir())
    shutil.copytree(machine, raw / "turbine")
    arguments = ["--model", trained, "--data_dir", tmp_path, "--output_dir", tmp_path / "scores"]
    with pytest.raises(KeyError, match=r"no machine '2026/turbine/00'\. It holds: '2026/"):
        run_script(score, arguments, monkeypatch)
    assert not (tmp_path / "scores" / "metrics.json").exists()


def test_the_command_line_answers_a_mistake_in_one_line(tmp_path: Path) -> None:
    recipe = tmp_path / "recipe.yaml"
    recipe.write_text(yaml.safe_dump({"learning_rat": 1e-4}))
    command = [sys.executable, ROOT / "train.py", "--recipe", recipe]
    finished = subprocess.run(
        [*command, "--data_dir", tmp_path, "--output_dir", tmp_path / "run"],
        capture_output=True,
        text=True,
        check=False,
    )
    assert finished.returncode == 1
    assert finished.stderr.splitlines()[-1].startswith("error: ")
    assert "Did you mean 'learning_rate'?" in finished.stderr
    assert "Traceback" not in finished.stderr


@pytest.mark.slow
def test_ctrl_c_saves_a_state_to_go_on_from(factory_dir: Path, tmp_path: Path) -> None:
    run = tmp_path / "run"
    command = [sys.executable, ROOT / "train.py", "--data_dir", factory_dir, "--output_dir", run]
    command += [*TINY_RECIPE, "--num_train_epochs", "500"]
    process = subprocess.Popen(command, stderr=subprocess.PIPE, text=True)
    log = run / "trainer_state" / "log.jsonl"
    deadline = time.monotonic() + 120
    while not (log.is_file() and log.read_text().count("\n") > 5):
        assert time.monotonic() < deadline
        assert process.poll() is None
        time.sleep(0.2)
    process.send_signal(signal.SIGINT)
    _, stderr = process.communicate(timeout=60)
    assert process.returncode == 130
    assert "--resume_from_checkpoint latest" in stderr
    step = int(next((run / "trainer_state").glob("step_*")).name.removeprefix("step_"))
    assert not (run / "run.json").exists()
    resumed = [*command, "--max_steps", str(step + 3), "--resume_from_checkpoint", "latest"]
    subprocess.run(resumed, check=True)
    assert (run / "run.json").is_file()
    steps = [json.loads(line).get("step") for line in log.read_text().splitlines()]
    assert [s for s in steps if s] == list(range(1, step + 4))


@pytest.mark.slow
def test_two_processes_train_as_one(factory_dir: Path, tmp_path: Path) -> None:
    arguments = ["--data_dir", factory_dir, *TINY_RECIPE, "--max_steps", 6]
    assert_two_processes_train_as_one(arguments, tmp_path)

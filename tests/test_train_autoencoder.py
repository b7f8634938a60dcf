"""The official baselines from recordings to a score folder; interrupted, resumed, refused."""

import json
import os
import shutil
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
import torch
from accelerate import Accelerator
from huggingface_hub.errors import StrictDataclassError
from transformers import pipeline

import score
import train
from data_scripts.near_far import decoded, load_near_far
from modeling import AutoencoderConfig, AutoencoderModel, ReferenceBank
from nearfar import autoencoder_states, autoencoder_training
from nearfar.arguments import parse_arguments
from nearfar.evaluation import ScoreTable
from nearfar.hub import read_run
from nearfar.training import TrainingInterruptedError
from nearfar.training_arguments import check_kind
from tests.scripts import assert_two_processes_train_as_one, run_script, weights

ROOT = Path(__file__).resolve().parents[1]
SIZES = {"num_mel_bins": 16, "hidden_size": 8, "num_hidden_layers": 1, "bottleneck_size": 4}
OPTIONS = ("--kind", "autoencoder", "--held_out_share", "0.2", "--train_batch_size", "64")
OPTIONS += ("--num_train_epochs", "3", "--learning_rate", "1e-3", "--seed", "5")
OPTIONS += ("--validation_share", "0.1")


def tiny(scoring: str = "mse") -> list[str]:
    return [*OPTIONS, "--autoencoder_config", json.dumps(SIZES | {"scoring": scoring})]


@pytest.fixture(scope="module")
def runs(factory_dir: Path, tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    """One run folder for each score; the second takes over the networks of the first."""
    root = tmp_path_factory.mktemp("runs")
    with pytest.MonkeyPatch.context() as monkeypatch:
        data = ["--data_dir", factory_dir, "--output_dir"]
        run_script(train, [*data, root / "mse", *tiny()], monkeypatch)
        resume = ["--resume_from_checkpoint", root / "mse" / "trainer_state"]
        command = [*data, root / "mahalanobis", *tiny("mahalanobis"), *resume]
        run_script(train, command, monkeypatch)
    return {name: root / name for name in ("mse", "mahalanobis")}


@pytest.fixture(scope="module", params=["mse", "mahalanobis"])
def run(request: pytest.FixtureRequest, runs: dict[str, Path]) -> Path:
    return runs[request.param]


@pytest.fixture(scope="module")
def scored(run: Path, factory_dir: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("scores") / run.name
    with pytest.MonkeyPatch.context() as monkeypatch:
        arguments = ["--model", run, "--data_dir", factory_dir, "--output_dir", folder]
        run_script(score, [*arguments, "--num_resamples", 20], monkeypatch)
    return folder


def test_a_run_folder_is_complete_and_says_what_it_is(run: Path) -> None:
    names = {path.name for path in run.iterdir()}
    assert {
        *("run.json", "config.json", "model.safetensors", "preprocessor_config.json"),
        *("reference_bank.safetensors", "reference_bank.json", "README.md", "recipe.yaml"),
        *("metrics.json", "modeling_autoencoder.py", "pipeline_asd.py", "reference_bank.py"),
    } <= names
    assert not {"modeling_asd.py", "modeling_beats.py"} & names  # it needs no encoder
    assert read_run(run)["kind"] == "autoencoder"
    card = " ".join((run / "README.md").read_text().split())
    assert "5 stacked log-mel frames of 16 bins" in card
    assert ("Mahalanobis" in card) == (run.name == "mahalanobis")
    assert "None: a recording is heard as it is." in card
    bank = ReferenceBank.from_pretrained(run)
    for machine in bank.machines:
        rule = bank.rule(machine)
        assert rule is not None
        assert rule["scores"] == "held_out"
        assert len(bank.calibration_scores(machine)) == 4  # 20 % of 14 source and of 6 target


def test_score_writes_the_same_files_as_for_any_system(scored: Path) -> None:
    metrics = json.loads((scored / "metrics.json").read_text())
    assert len(metrics["machines"]) == 2
    assert 0 < metrics["official_score"] < 1
    table = ScoreTable.read_csv(scored / "scores.csv")
    assert np.isfinite(table.p_values.astype(float)).all()
    assert (table.anomaly_scores > 0).all()
    for machine in table.machine_names:
        machine_type = machine.split("/")[1]
        for kind in ("anomaly_score", "decision_result"):
            assert (scored / f"{kind}_{machine_type}_section_00_test.csv").is_file()
    calibration = json.loads((scored / "calibration_scores.json").read_text())
    assert calibration


def test_the_two_scores_share_networks_and_differ(runs: dict[str, Path]) -> None:
    mse, mahalanobis = (weights(runs[name]) for name in ("mse", "mahalanobis"))
    assert mse.keys() == mahalanobis.keys()
    for name, tensor in mse.items():
        assert torch.equal(tensor, mahalanobis[name]), name
    banks = [ReferenceBank.from_pretrained(run) for run in runs.values()]
    for machine in banks[0].machines:
        first, second = (bank.calibration_scores(machine) for bank in banks)
        assert not torch.allclose(first, second)


def test_baselines_are_fused_as_any_systems(
    runs: dict[str, Path], factory_dir: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    arguments = ["--fuse", *runs.values(), "--weights", 0.3, 0.7, "--output_dir", tmp_path / "both"]
    run_script(score, arguments, monkeypatch)
    clips = decoded(load_near_far(factory_dir)["test"])
    chosen = [clips[index] for index in (0, len(clips) - 1)]
    fused = score.load_scorer(tmp_path / "both").score(chosen).anomaly_scores
    expected = np.zeros(len(chosen))
    for weight, run in zip((0.3, 0.7), runs.values(), strict=True):
        scorer = score.load_scorer(run)
        for i, clip in enumerate(chosen):
            normal = np.asarray(scorer.calibration(clip["machine"]).anomaly_scores, dtype=float)
            (own,) = scorer.score([clip]).anomaly_scores
            expected[i] += weight * (own - normal.mean()) / normal.std(ddof=1)
    np.testing.assert_allclose(fused, expected, rtol=1e-4)


def test_a_clip_scores_alone_and_in_the_pipeline_as_in_score_py(
    run: Path, scored: Path, factory_dir: Path
) -> None:
    table = ScoreTable.read_csv(scored / "scores.csv")
    scorer = score.load_scorer(run)
    clips = decoded(load_near_far(factory_dir)["test"])
    pipe = pipeline("anomalous-sound-detection", model=str(run), trust_remote_code=True)
    chosen = [clips[index] for index in (0, 1, len(clips) - 1)]
    options = {"sampling_rate": 16_000}
    verdicts = pipe(chosen, batch_size=2, **options) + pipe(chosen, **options)
    for clip, verdict in zip(chosen * 2, verdicts, strict=True):
        alone = scorer.score([clip])
        row = (table.machines == clip["machine"]) & (table.file_names == clip["file_name"])
        expected = table.anomaly_scores[row]
        np.testing.assert_allclose(alone.anomaly_scores, expected, rtol=1e-4)
        assert verdict["anomaly_score"] == pytest.approx(expected[0], rel=1e-4)
        assert verdict["machine"] == clip["machine"]
        assert int(verdict["anomalous"]) == int(table.decisions[row][0])


def test_the_folder_needs_nothing_of_nearfar(
    runs: dict[str, Path], factory_dir: Path, tmp_path: Path
) -> None:
    clip = sorted((factory_dir / "dev_data" / "raw").glob("*/test/*.wav"))[0]
    code = (
        "import sys; from transformers import pipeline;"
        "pipe = pipeline('anomalous-sound-detection', model=sys.argv[1], trust_remote_code=True);"
        "print(pipe(sys.argv[2], machine=sys.argv[3])['anomaly_score']);"
        "assert not {'modeling', 'nearfar', 'data_scripts'} & set(sys.modules)"
    )
    words = [sys.executable, "-I", "-c", code, runs["mahalanobis"], clip, clip.parts[-3]]
    environment = {key: os.environ[key] for key in ("PATH", "LD_LIBRARY_PATH") if key in os.environ}
    environment |= {"HOME": str(tmp_path), "HF_HUB_OFFLINE": "1"}
    finished = subprocess.run(
        [str(word) for word in words],
        check=True,
        capture_output=True,
        text=True,
        cwd=tmp_path,
        env=environment,
    )
    clips = decoded(load_near_far(factory_dir)["test"])
    machine = f"2026/{clip.parts[-3]}/00"
    row = next(c for c in clips if (c["machine"], c["file_name"]) == (machine, clip.name))
    expected = score.load_scorer(runs["mahalanobis"]).score([row]).anomaly_scores[0]
    assert float(finished.stdout.split()[-1]) == pytest.approx(expected, rel=1e-4)


def test_training_reconstructs_better_than_the_first_epoch(runs: dict[str, Path]) -> None:
    log = (runs["mse"] / "trainer_state" / "log.jsonl").read_text().splitlines()
    lines = [json.loads(line) for line in log][1:]
    assert [line["step"] for line in lines] == [1, 2, 3] * 2  # for each machine
    for machine in ReferenceBank.from_pretrained(runs["mse"]).machines:
        losses = [line[f"{machine}/loss"] for line in lines if f"{machine}/loss" in line]
        checks = [line[f"{machine}/validation_loss"] for line in lines if f"{machine}/loss" in line]
        assert losses == sorted(losses, reverse=True)
        assert len(checks) == 3


def test_a_machine_is_trained_as_if_it_were_alone(
    runs: dict[str, Path], factory_dir: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    machine = AutoencoderModel.from_pretrained(runs["mse"]).config.machines[1]
    # Which clips are held out depends on the machines before: so hold out none.
    arguments = ["--data_dir", factory_dir, *tiny(), "--held_out_share", 0]
    one = ["--output_dir", tmp_path / "alone", "--machine_types", machine.split("/")[1]]
    run_script(train, [*arguments, *one], monkeypatch)
    run_script(train, [*arguments, "--output_dir", tmp_path / "both"], monkeypatch)
    alone, both = (AutoencoderModel.from_pretrained(tmp_path / name) for name in ("alone", "both"))
    assert list(alone.config.machines) == [machine]
    expected = both.networks_of(machine).state_dict()
    for name, tensor in alone.networks_of(machine).state_dict().items():
        assert torch.equal(tensor, expected[name]), name


def test_interrupted_and_resumed_trains_no_machine_twice(
    runs: dict[str, Path], factory_dir: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    trained: list[str] = []
    train_network = autoencoder_training.train_network

    def watch(build, data, options, accelerator, name, unfinished, interrupted):
        trained.append(name)
        if len(trained) == 2:
            interrupted.append(2)  # as the signal handler does
        return train_network(build, data, options, accelerator, name, unfinished, interrupted)

    monkeypatch.setattr(autoencoder_training, "train_network", watch)
    arguments = ["--data_dir", factory_dir, "--output_dir", tmp_path, *tiny()]
    with pytest.raises(TrainingInterruptedError, match="after epoch 1 of 3; everything is saved"):
        run_script(train, arguments, monkeypatch)
    assert not (tmp_path / "run.json").exists()
    run_script(train, [*arguments, "--resume_from_checkpoint", "latest"], monkeypatch)
    assert not list((tmp_path / "trainer_state").glob("*.unfinished"))
    machines = ReferenceBank.from_pretrained(tmp_path).machines
    assert trained == [machines[0], machines[1], machines[1]]
    whole, halves = weights(runs["mse"]), weights(tmp_path)
    for name, tensor in whole.items():
        assert torch.equal(tensor, halves[name]), name


def test_each_channel_has_networks_of_its_own(
    factory_dir: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    arguments = ["--data_dir", factory_dir, "--output_dir", tmp_path, *tiny(), "--channels"]
    run_script(train, [*arguments, "near", "far", "--num_train_epochs", 1], monkeypatch)
    model = AutoencoderModel.from_pretrained(tmp_path)
    networks = model.networks_of(model.config.machines[0])
    assert set(networks) == {"near", "far"}
    means = [network.layers[1].running_mean for network in networks.values()]
    assert not torch.allclose(*means)
    clips = decoded(load_near_far(factory_dir)["test"])
    assert np.isfinite(score.load_scorer(tmp_path).score([clips[0]]).anomaly_scores).all()


@pytest.mark.parametrize("name", ["baseline_mse", "baseline_mahala"])
def test_a_recipe_states_what_the_organisers_do(tmp_path: Path, name: str) -> None:
    here = ["--data_dir", str(tmp_path), "--output_dir", str(tmp_path)]
    recipe = ROOT / "recipes" / f"{name}.yaml"
    args = parse_arguments(train.TrainArguments, ["--recipe", str(recipe), *here])
    check_kind(args)
    stated = AutoencoderConfig(**args.autoencoder_config)
    official = AutoencoderConfig(scoring="mse" if name == "baseline_mse" else "mahalanobis")
    assert stated.to_dict() == official.to_dict()
    assert [getattr(args, option) for option in autoencoder_states.USED_OPTIONS] == [
        *(100, 256, 1e-3, 0.1, 13711)
    ]
    assert (args.threshold, args.threshold_quantile) == ("gamma", 0.9)


@pytest.mark.parametrize(
    ("extra", "message"),
    [
        (["--resume_from_checkpoint", "latest"], "no saved state to resume from"),
        (["--validation_share", "1"], "validation_share=1.0"),
        (["--far_mixing", "0.5", "--lora_rank", "4"], r"does not read \['far_mixing', 'lora_rank'"),
        (["--no_training"], "does not read"),
        (["--autoencoder_config", '{"hidden": 8}'], r"autoencoder_config \['hidden'\] are unknown"),
        (["--channels", "middle"], "'near', 'far' or both"),
        (["--kind", "model"], "does not read"),
        (["--learning_rate", "1e30", "--num_train_epochs", "9"], "learning_rate below 1e"),
    ],
)
def test_a_mistake_is_answered_and_nothing_is_half_written(
    factory_dir: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, extra, message
) -> None:
    arguments = ["--data_dir", factory_dir, "--output_dir", tmp_path / "run", *tiny(), *extra]
    errors = (ValueError, OSError, FloatingPointError, StrictDataclassError)
    with pytest.raises(errors, match=message):
        run_script(train, arguments, monkeypatch)
    assert not (tmp_path / "run" / "run.json").exists()
    assert not (tmp_path / "run" / "model.safetensors").exists()


@pytest.mark.parametrize("change", ["a clip is gone", "--num_train_epochs", "--seed"])
def test_resuming_on_other_clips_or_options_is_refused(
    runs: dict[str, Path],
    factory_dir: Path,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    change: str,
) -> None:
    data, more = factory_dir, [change, 7]
    if change == "a clip is gone":
        data, more = tmp_path / "data", []
        shutil.copytree(factory_dir, data)
        next(data.rglob("train/*.wav")).unlink()
    arguments = ["--data_dir", data, "--output_dir", tmp_path / "run", *tiny(), *more]
    resume = ["--resume_from_checkpoint", runs["mse"] / "trainer_state"]
    with pytest.raises(ValueError, match="was trained on other clips"):
        run_script(train, [*arguments, *resume], monkeypatch)


def test_a_machine_of_one_clip_or_unknown_to_the_run_is_refused(
    runs: dict[str, Path], factory_dir: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    raw = tmp_path / "dev_data" / "raw"
    shutil.copytree(next((factory_dir / "dev_data" / "raw").iterdir()), raw / "turbine")
    arguments = ["--data_dir", tmp_path, "--output_dir", tmp_path / "out"]
    with pytest.raises(KeyError, match=r"no machine '2026/turbine/00'\. It holds: '2026/"):
        run_script(score, [*arguments, "--model", runs["mse"]], monkeypatch)
    for path in sorted((raw / "turbine" / "train").glob("*.wav"))[1:]:
        path.unlink()
    with pytest.raises(ValueError, match="turbine/00 has 1 training clip"):
        run_script(train, [*arguments, *tiny()], monkeypatch)


def test_too_short_a_clip_is_refused_by_name(run: Path) -> None:
    clip = decoded_row(num_samples=1_000)
    with pytest.raises(ValueError, match=r"short\.wav.*2048 or more"):
        score.load_scorer(run).score([clip], Accelerator())


def decoded_row(num_samples: int) -> dict[str, object]:
    samples = np.zeros(num_samples, dtype=np.float32)
    machine = {"machine": "2026/fan/00", "file_name": "short.wav", "attributes": ""}
    return machine | {"near": samples, "far": None, "domain": "source", "condition": "normal"}


@pytest.mark.slow
def test_two_processes_share_the_machines_and_train_as_one(
    factory_dir: Path, tmp_path: Path
) -> None:
    assert_two_processes_train_as_one(["--data_dir", factory_dir, *tiny()], tmp_path)

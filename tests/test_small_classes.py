"""Classes as small as those of 2026 are legal: one clip, ten clips in nine settings, no setting."""

import json
import shutil
from itertools import product
from pathlib import Path

import numpy as np
import pytest
import yaml

import score
import train
from modeling import AsdConfig, ReferenceBank
from nearfar.evaluation import ScoreTable
from nearfar.training_clips import LabelledClips
from tests.scripts import TINY_RECIPE, run_script

SANDER = [f"spd_{speed}_grit_{grit}" for speed, grit in product("135", ("060", "120", "240"))]


@pytest.fixture(scope="module")
def data(factory_dir: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The simulated factory, with names like Sander's for one machine and none for the other."""
    folder = tmp_path_factory.mktemp("small") / "data"
    shutil.copytree(factory_dir, folder)
    (folder / "factory.json").unlink()
    for path in folder.rglob("attributes_00.csv"):
        path.unlink()
    first, second = sorted((folder / "dev_data" / "raw").iterdir())
    source, target = (sorted((first / "train").glob(f"*_{d}_*")) for d in ("source", "target"))
    for i, path in enumerate(source):  # the last setting has a single clip
        setting = "spd_4_grit_120" if i == len(source) - 1 else "spd_2_grit_060"
        path.rename(path.with_name(f"section_00_source_train_normal_{i:04d}_{setting}.wav"))
    for i in range(10):  # ten clips in nine settings
        name = f"section_00_target_train_normal_{i:04d}_{SANDER[i % 9]}.wav"
        shutil.copy(target[i % len(target)], first / "train" / f"copy_{name}")
    for path in target:
        path.unlink()
    for path in (first / "train").glob("copy_*"):
        path.rename(path.with_name(path.name.removeprefix("copy_")))
    for path in sorted((second / "train").glob("*.wav")):
        path.rename(path.with_name("_".join(path.stem.split("_")[:6]) + "_noAttribute.wav"))
    return folder


@pytest.mark.parametrize(
    ("options", "num_classes"),
    [
        (("--head", "os_scl", "--subcenters_without_attributes", 4), 2 + 9 + 2),
        (
            (
                *("--pseudo_labels", "missing_attributes", "--num_pseudo_labels", 2),
                *("--target_share", 0.5, "--mixup_alpha", 0.4),
            ),
            2 + 9 + 2 + 1,
        ),
    ],
    ids=["contrastive", "pseudo_labels"],
)
def test_small_classes_train_and_score(
    options, num_classes, data: Path, tmp_path: Path, monkeypatch
) -> None:
    run, scores = tmp_path / "run", tmp_path / "scores"
    words = ["--data_dir", data, "--output_dir", run, *TINY_RECIPE, "--held_out_share", 0.1]
    run_script(train, [*words, *options, "--max_steps", 6], monkeypatch)
    config = AsdConfig.from_pretrained(run)
    names = list(config.id2label.values())
    assert config.num_labels == num_classes
    assert sum("Sim/00|spd" in name and name.endswith("target") for name in names) == 9
    first, second = ReferenceBank.from_pretrained(run).machines
    if "--subcenters_without_attributes" in options:
        bare = [second in name for name in names]
        assert config.head_options["num_subcenters"] == [4 if one else 1 for one in bare]
    held_out = ReferenceBank.from_pretrained(run).calibration(first)
    assert sorted(held_out.domains) == ["source", "target"]
    assert not any("spd_4_grit_120" in name for name in held_out.file_names)
    losses = [json.loads(line) for line in (run / "trainer_state" / "log.jsonl").open()]
    assert all(np.isfinite(line["loss"]) for line in losses if "loss" in line)
    run_script(score, ["--model", run, "--data_dir", data, "--output_dir", scores], monkeypatch)
    table = ScoreTable.read_csv(scores / "scores.csv")
    assert np.isfinite(table.anomaly_scores).all()
    assert set(table.decisions) <= {0, 1}


def test_a_loss_that_is_no_number_leaves_the_last_good_state_and_says_where(
    data: Path, tmp_path: Path, monkeypatch
) -> None:
    """From the command line, with a rate at which no training stays finite."""
    words = ["--data_dir", data, "--output_dir", tmp_path, *TINY_RECIPE, "--save_steps", 1]
    run_script(train, [*words, "--max_steps", 2], monkeypatch)
    before = yaml.safe_load((tmp_path / "recipe.yaml").read_text())
    clip = LabelledClips.__getitem__
    spoilt = lambda self, i: (row := clip(self, i)) | {"near": row["near"] * np.float32(1e30)}  # noqa: E731 - one use
    monkeypatch.setattr(LabelledClips, "__getitem__", spoilt)
    words += ["--resume_from_checkpoint", "latest", "--max_steps", 4]
    with pytest.raises(FloatingPointError, match=r"in update 3 \(epoch.*step_000002; resume from"):
        run_script(train, words, monkeypatch)
    assert (tmp_path / "trainer_state" / "step_000002").is_dir()
    assert yaml.safe_load((tmp_path / "recipe.yaml").read_text()) == before
    assert (tmp_path / "run.json").is_file()

"""Published recordings go to a Hub and come back by real clients, whatever breaks in between."""

import io
import json
import os
import shutil
import subprocess
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow.parquet as pq
import pytest
import soundfile
from huggingface_hub import HfApi

from data_scripts.near_far import decoded, load_near_far
from data_scripts.publish import main, publish_recordings, push_to_hub
from nearfar import metric_space
from nearfar.metrics import official_score, section_metrics
from tests.loopback_hub import USER, Fault, LoopbackHub
from tests.person import Person

REPO = f"{USER}/machines"
ROOT = Path(__file__).resolve().parents[2]


@pytest.fixture(scope="module")
def recordings(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Two machines of three training and two test clips."""
    folder = tmp_path_factory.mktemp("recordings")
    rng = np.random.default_rng(1)
    for machine in ("fan", "ToyCar"):
        for name in (
            *(f"train/section_00_source_train_normal_{i:04d}_spd_1.wav" for i in range(3)),
            "test/section_00_source_test_normal_0000_spd_1.wav",
            "test/section_00_target_test_anomaly_0000_spd_1.wav",
        ):
            path = folder / machine / name
            path.parent.mkdir(parents=True, exist_ok=True)
            noise = rng.integers(-3_000, 3_000, size=(400, 2)).astype(np.int16)
            soundfile.write(path, noise, 16_000)
    return folder


@pytest.fixture(scope="module")
def published(recordings: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The same, published for REPO, a training clip in each file."""
    folder = tmp_path_factory.mktemp("published")
    publish_recordings(
        recordings, folder, licenses=["cc-by-4.0"], repo_id=REPO, max_shard_size=2_000
    )
    return folder


def push(recordings: Path, folder: Path, *options: str) -> None:
    words = ["--data_dir", recordings, "--output_dir", folder, "--repo_id", REPO]
    main([str(word) for word in words] + ["--max_shard_size", "2000", *options])


def test_what_is_pushed_is_the_folder_without_what_is_of_this_computer(
    hub: LoopbackHub, recordings: Path, published: Path
) -> None:
    push(recordings, published, "--license", "cc-by-4.0")
    there = hub.repository("datasets", REPO).files()
    due = {
        path.relative_to(published).as_posix(): path.read_bytes()
        for path in published.rglob("*")
        if path.is_file() and not path.name.startswith(".")
    }
    assert {path: blob.content for path, blob in there.items()} == due | {
        ".gitattributes": there[".gitattributes"].content
    }
    assert (published / ".publication.json").is_file()
    assert not hub.repository("datasets", REPO).private


def test_nobody_learns_who_published(hub: LoopbackHub, recordings: Path, person: Person) -> None:
    shutil.copytree(recordings, person.home / "data")
    push(person.home / "data", person.home / "parquet", "--license", "cc-by-4.0")
    repository = hub.repository("datasets", REPO)
    for path, blob in repository.files().items():
        told = blob.content
        if path.endswith(".parquet"):  # compressed
            table = pq.read_table(io.BytesIO(told))
            told += repr((table.to_pylist(), table.schema.metadata)).encode()
        assert not person.is_told_by(told), path
        assert str(person.home.parent).encode() not in told, path
    assert not person.is_told_by(repr(repository.log).encode())


def test_an_upload_that_was_cut_off_shows_nothing_and_goes_on_where_it_was(
    hub: LoopbackHub, recordings: Path, published: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("time.sleep", lambda seconds: None)  # of the client's patience
    hub.faults.append(Fault("PUT /_lfs", status=403, after=3))
    options = ["--license", "cc-by-4.0"]
    with pytest.raises(SystemExit, match="Run the same command again to go on"):
        push(recordings, published, *options)
    assert list(hub.repository("datasets", REPO).files()) == [".gitattributes"]
    sent = dict(hub.uploads)
    assert 0 < len(sent) < 10
    hub.faults.clear()
    hub.requests.clear()
    push(recordings, published, *options)
    again = {asked.rpartition("/")[2] for asked in hub.requests if asked.startswith("PUT /_lfs")}
    assert not again & set(sent)
    assert len(hub.uploads) == 10
    assert "README.md" in hub.repository("datasets", REPO).files()


def test_files_that_are_no_more_leave_the_hub_with_the_card_that_named_them(
    hub: LoopbackHub, recordings: Path, published: Path, tmp_path: Path
) -> None:
    push(recordings, published, "--license", "cc-by-4.0")
    larger = publish_recordings(
        recordings, tmp_path / "LARGER", licenses=["cc-by-4.0"], repo_id=REPO
    )
    push_to_hub(tmp_path / "LARGER", larger)
    paths = HfApi().list_repo_files(REPO, repo_type="dataset")
    assert {path for path in paths if path.endswith(".parquet")} == {f.path for f in larger.files}


def test_an_unknown_licence_is_pushed_only_where_nobody_sees_it(
    hub: LoopbackHub, recordings: Path, tmp_path: Path
) -> None:
    with pytest.raises(SystemExit, match=r"licence of dev of 2026 is not known.*--license"):
        push(recordings, tmp_path / "OUT")
    assert not hub.repositories
    push(recordings, tmp_path / "OUT", "--private")
    assert hub.repository("datasets", REPO).private
    HfApi().update_repo_settings(REPO, repo_type="dataset", private=False)
    commits = len(hub.repository("datasets", REPO).log)
    with pytest.raises(SystemExit, match=r"licence of dev of 2026 is not known"):
        push(recordings, tmp_path / "OUT", "--private")  # which is of new repositories
    assert len(hub.repository("datasets", REPO).log) == commits


def test_without_rights_or_a_repository_one_line_says_so(
    hub: LoopbackHub, recordings: Path, published: Path, tmp_path: Path, monkeypatch: Any
) -> None:
    hub.users["hf_other"] = "other"
    monkeypatch.setenv("HF_TOKEN", "hf_other")
    with pytest.raises(SystemExit, match="rights") as stopped:
        push(recordings, published, "--license", "cc-by-4.0")
    assert "\n" not in str(stopped.value)
    for name in ("tester/nothing", f"{REPO}@v9"):
        with pytest.raises(FileNotFoundError, match=r"neither a folder here nor a data set") as no:
            load_near_far(name, cache_dir=tmp_path / "cache")
        assert "\n" not in str(no.value)
    hub.check()


def test_who_may_not_push_learns_it_before_files_are_written(
    hub: LoopbackHub, recordings: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.delenv("HF_TOKEN")
    with pytest.raises(SystemExit, match=r"There is no access token.*HF_TOKEN") as stopped:
        push(recordings, tmp_path / "OUT", "--license", "mit")
    assert "\n" not in str(stopped.value)
    monkeypatch.setenv("HF_TOKEN", "hf_wrong")
    with pytest.raises(SystemExit, match="Invalid user token") as stopped:
        push(recordings, tmp_path / "OUT", "--license", "mit")
    assert "\n" not in str(stopped.value)
    assert not (tmp_path / "OUT").exists()
    assert not hub.repositories


def test_what_is_public_is_not_pushed_to_as_private(
    hub: LoopbackHub, recordings: Path, published: Path
) -> None:
    HfApi().create_repo(REPO, repo_type="dataset")
    with pytest.raises(SystemExit, match="is public, so --private cannot be kept"):
        push(recordings, published, "--license", "cc-by-4.0", "--private")
    assert len(hub.repository("datasets", REPO).log) == 1


CLIENT = """
import json, sys
sys.modules["transformers"] = None  # evaluate would import its pipelines, slowly, for nothing here
import evaluate
del sys.modules["transformers"]
import datasets
from data_scripts.near_far import decoded, load_near_far

repo, space = sys.argv[1:3]
stream = datasets.load_dataset(repo, "fan", split="train", streaming=True)
cached = datasets.load_dataset(repo, "fan", split="test")
found = {
    "configs": sorted(datasets.get_dataset_config_names(repo)),
    "streamed": [[row["file_name"], float(row["far"].sum())] for row in decoded(stream)],
    "cached": [[row["file_name"], float(row["far"].sum())] for row in decoded(cached)],
    "shards": load_near_far(repo, streaming=True)["train"].num_shards,
    "machines": {
        split: [[row["machine"], float(row["near"].sum())] for row in decoded(clips)]
        for split, clips in load_near_far(repo).items()
    },
    "streamed machines": [
        [row["machine"], float(row["near"].sum())]
        for row in decoded(load_near_far(repo, streaming=True)["train"])
    ],
}
try:
    datasets.load_dataset(repo, "pump", streaming=True)
except ValueError as error:
    found["wrong"] = str(error)
metric = evaluate.load(space, module_type="metric")
found["metric"] = metric.compute(**json.loads(sys.argv[3]))
import huggingface_hub.constants
huggingface_hub.constants.HF_HUB_OFFLINE = True  # the rows are built again, of files in the cache
again = load_near_far(repo, cache_dir=sys.argv[4])
found["offline"] = [[row["machine"], float(row["near"].sum())] for row in decoded(again["train"])]
print(json.dumps(found))
"""


@pytest.mark.slow  # a process that imports datasets and evaluate
def test_a_fresh_process_loads_streams_and_scores_by_name(
    hub: LoopbackHub, recordings: Path, published: Path, tmp_path: Path
) -> None:
    push(recordings, published, "--license", "cc-by-4.0")
    space = f"{USER}/dcase_task2"
    metric_space.main(["--output_dir", str(tmp_path / "SPACES"), "--repo_id", space])
    rng = np.random.default_rng(3)
    inputs = {
        "predictions": rng.normal(size=40).round(3).tolist(),
        "references": [0, 1] * 20,
        "domains": ["source", "source", "target", "target"] * 10,
        "machines": ["2026/fan/00"] * 20 + ["2026/ToyCar/00"] * 20,
    }
    done = subprocess.run(
        [sys.executable, "-c", CLIENT, REPO, space, json.dumps(inputs), str(tmp_path / "offline")],
        env=os.environ
        | hub.environment(tmp_path / "home")
        | {"HF_DATASETS_CACHE": str(tmp_path / "datasets"), "PYTHONPATH": str(ROOT)},
        cwd=tmp_path,
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 0, done.stderr
    found = json.loads(done.stdout.splitlines()[-1])
    raw = load_near_far(recordings, cache_dir=tmp_path / "cache")
    due = {
        split: [[row["machine"], float(row["near"].sum())] for row in decoded(clips)]
        for split, clips in raw.items()
    }
    assert found["machines"] == due
    assert found["streamed machines"] == found["offline"] == due["train"]
    for name, split in (("streamed", "train"), ("cached", "test")):
        assert found[name] == [
            [row["file_name"], float(row["far"].sum())]
            for row in decoded(raw[split])
            if row["machine_type"] == "fan"
        ]
    assert found["configs"] == ["ToyCar", "fan"]
    assert found["shards"] == 6
    assert "BuilderConfig 'pump' not found" in found["wrong"]
    sections = [
        section_metrics(
            inputs["references"][half], inputs["predictions"][half], inputs["domains"][half]
        )
        for half in (slice(0, 20), slice(20, 40))
    ]
    assert found["metric"]["official_score"] == official_score(sections)
    assert found["metric"]["machines"]["2026/ToyCar/00"] == sections[1]._asdict()

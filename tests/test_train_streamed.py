"""train.py --streaming: the same system of published recordings, without a copy of them."""

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import datasets
import numpy as np
import pytest
import torch
import yaml
from huggingface_hub import HfApi, HfFileSystemFile

import train
from data_scripts.publish import main as publish
from data_scripts.publish import publish_recordings
from data_scripts.published import PublishedSource, at_one_commit, load_published
from data_scripts.streamed import stream_published
from modeling import ReferenceBank
from nearfar.clip_streams import ClipStream
from nearfar.files import read_json
from nearfar.training_clips import LabelledClips
from nearfar.training_options import TrainingOptions
from tests.loopback_hub import USER, Fault, LoopbackHub
from tests.scripts import TINY_RECIPE, assert_two_processes_train_as_one, run_script, weights
from tests.training import assert_resumes_exactly, noise_clips, train_tiny

REPO = f"{USER}/machines"
STREAMED = ("--streaming", "--shuffle_buffer_size", 16, *TINY_RECIPE)
OPTIONS: dict[str, Any] = {
    "train_batch_size": 3,
    "num_train_epochs": 2,
    "learning_rate": 1e-2,
    "shuffle_buffer_size": 4,
    "far_mixing": 0.5,
    "mixup_alpha": 0.5,
    "noise_probability": 0.5,
    "logging_steps": 100,
    "save_steps": 4,
}


@pytest.fixture
def hub(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> Iterator[LoopbackHub]:
    with LoopbackHub() as hub, hub.clients_here(monkeypatch, tmp_path / "home"):
        yield hub
        hub.check()


@pytest.fixture(scope="module")
def published(factory_dir: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The factory, in files of about seven clips."""
    folder = tmp_path_factory.mktemp("published")
    publish_recordings(factory_dir, folder, licenses=["cc-by-4.0"], max_shard_size=7 * 64_044)
    return folder


def assert_same_runs(ours: Path, due: Path) -> None:
    """Check that two run folders hold the same weights, references and thresholds, to the bit."""
    found, expected = weights(ours), weights(due)
    assert found.keys() == expected.keys()
    for name, tensor in expected.items():
        assert torch.equal(found[name], tensor), name
    banks = [ReferenceBank.from_pretrained(run) for run in (ours, due)]
    assert banks[0].machines == banks[1].machines
    for machine in banks[1].machines:
        assert torch.equal(*(bank.calibration_scores(machine) for bank in banks))
        calibrations = [bank.calibration(machine) for bank in banks]
        assert calibrations[0].file_names == calibrations[1].file_names
    metrics = [read_json(run / "metrics.json") for run in (ours, due)]
    for values in metrics:
        values.pop("clips_digest")  # what a stream sounds like is not known beforehand
    assert metrics[0] == metrics[1]


def streamed(clips: LabelledClips, *, num_shards: int = 3) -> LabelledClips:
    """Return the same clips, labels and all, of a stream."""
    keys = [
        {"year": 2026, "machine_type": row["machine"].split("/")[1], "section": 0}
        | {"file_name": row["file_name"]}
        for row in clips.rows
    ]
    table = datasets.Dataset.from_list([key | {"number": i} for i, key in enumerate(keys)])
    rows = [dict(row) | key for row, key in zip(clips.rows, keys, strict=True)]
    stream = ClipStream(
        table.to_iterable_dataset(num_shards=num_shards),
        rows,
        lambda row: clips.clips[row["number"]],
    )
    return LabelledClips(stream, clips.labels, rows, channels=clips.channels)


def train_streamed(folder: Path, *, resume: bool = False, **options: Any) -> torch.nn.Module:
    """Train on both channels, with three clips that select weights."""
    clips = streamed(noise_clips(channels=("near", "far")))
    return train_tiny(
        folder,
        TrainingOptions(**OPTIONS | {"eval_steps": 3, "keep_best": 3} | options),
        clips=clips,
        validation=np.isin(np.arange(len(clips.rows)), (0, 5, 10)),
        resume=resume,
    )


@pytest.mark.parametrize("update", [5, 9])  # of 14; 7 are an epoch
def test_a_streamed_training_resumes_exactly_at_any_update(
    update: int, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    assert_resumes_exactly(tmp_path, monkeypatch, update, train_streamed)


def test_workers_that_decode_a_stream_change_nothing(tmp_path: Path) -> None:
    one = train_streamed(tmp_path / "one").state_dict()
    three = train_streamed(tmp_path / "three", dataloader_num_workers=3).state_dict()
    for name, tensor in one.items():
        assert torch.equal(tensor, three[name]), name


def test_what_is_known_beforehand_is_what_the_stream_gives_and_reads_no_sound(
    published: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    with monkeypatch.context() as patched:
        patched.setattr("soundfile.read", None)
        stream, rows = stream_published(published, split="train", subsets=["dev"])
    assert {"near", "far"}.isdisjoint(rows[0])
    names = [(row["machine_type"], row["file_name"]) for row in stream]
    assert names == [(row["machine_type"], row["file_name"]) for row in rows]
    assert len(set(names)) == 40
    assert stream.num_shards > 4


def test_an_untrained_system_of_a_stream_is_that_of_the_folder(
    factory_dir: Path, published: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    untrained = [*TINY_RECIPE, "--no_training", "--far_mixing", 0]
    untrained += ["--front_end", "complex_least_squares", "--guard", "fitted"]
    for name, options in (
        ("folder", ["--data_dir", factory_dir]),
        ("stream", ["--data_dir", published, "--streaming"]),
    ):
        run_script(train, [*untrained, *options, "--output_dir", tmp_path / name], monkeypatch)
    assert_same_runs(tmp_path / "stream", tmp_path / "folder")


def test_training_streams_from_the_hub_what_it_would_from_the_folder_and_keeps_no_copy(
    hub: LoopbackHub,
    factory_dir: Path,
    published: Path,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    words = ["--data_dir", factory_dir, "--output_dir", published, "--repo_id", REPO]
    publish(
        [str(word) for word in [*words, "--license", "cc-by-4.0"]] + ["--max_shard_size", "448308"]
    )
    hub.requests.clear()
    for name, source in (("hub", REPO), ("folder", published)):
        data = ["--data_dir", source, "--num_train_epochs", 2, "--output_dir", tmp_path / name]
        run_script(train, [*STREAMED, *data], monkeypatch)
    assert any(asked.startswith("GET") and ".parquet" in asked for asked in hub.requests)
    kept = [path for path in (tmp_path / "home").rglob("*") if path.is_file()]
    assert not [path for path in kept if path.stat().st_size > 20_000]
    assert_same_runs(tmp_path / "hub", tmp_path / "folder")
    log = (tmp_path / "hub" / "trainer_state" / "log.jsonl").read_text().splitlines()
    losses = [entry["loss"] for entry in map(yaml.safe_load, log) if "loss" in entry]
    assert len(losses) == 8  # 32 clips, 8 in a batch
    assert np.mean(losses[4:]) < np.mean(losses[:4])
    recipe = yaml.safe_load((tmp_path / "hub" / "recipe.yaml").read_text())
    assert (recipe["streaming"], recipe["shuffle_buffer_size"]) == (True, 16)


def test_a_stream_stays_at_the_commit_it_began_with(hub: LoopbackHub) -> None:
    HfApi().create_repo(REPO, repo_type="dataset")
    first = at_one_commit(PublishedSource(None, REPO))
    HfApi().upload_file(
        path_or_fileobj=b"more", path_in_repo="more.txt", repo_id=REPO, repo_type="dataset"
    )
    second = at_one_commit(PublishedSource(None, REPO, "main"))
    assert first.revision != second.revision == hub.repository("datasets", REPO).commit_id("main")
    assert at_one_commit(first) == first


def test_labels_cost_little_of_the_data_set_and_a_stream_that_breaks_off_says_how_to_go_on(
    hub: LoopbackHub, published: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    HfApi().create_repo(REPO, repo_type="dataset")
    HfApi().upload_folder(repo_id=REPO, repo_type="dataset", folder_path=published)
    fetched: list[int] = []
    fetch = HfFileSystemFile._fetch_range

    def note(file: Any, start: int, end: int) -> bytes:
        fetched.append(end - start)
        return fetch(file, start, end)

    monkeypatch.setattr(HfFileSystemFile, "_fetch_range", note)
    stream_clips = load_published(
        PublishedSource(None, REPO), year=2026, subsets=["dev"], streaming=True, audio=False
    )
    assert len(list(stream_clips["train"])) == 40
    size = sum(path.stat().st_size for path in published.glob("2026/dev/*/train-*.parquet"))
    assert 0 < sum(fetched) < size / 4
    stream, rows = stream_published(REPO, split="train", subsets=["dev"])
    hub.faults.append(Fault("GET .*parquet", status=403, after=1))
    with pytest.raises(OSError, match=r"any further.*_checkpoint latest") as told:
        list(ClipStream(stream, rows, dict).read())
    assert "\n" not in str(told.value)
    hub.faults.clear()
    path = next(iter(sorted(published.glob("2026/dev/*/train-*.parquet"))))
    HfApi().upload_file(
        path_or_fileobj=path.read_bytes()[:-100],
        path_in_repo=path.relative_to(published).as_posix(),
        repo_id=REPO,
        repo_type="dataset",
    )
    with pytest.raises(ValueError, match=r"machines' has a file that is damaged.*again") as told:
        stream_published(REPO, split="train", subsets=["dev"])
    assert "\n" not in str(told.value)
    assert len(list(ClipStream(stream, rows, dict).read())) == 40  # of the commit of before


def test_what_cannot_be_streamed_is_said_in_one_line(
    hub: LoopbackHub, monkeypatch: pytest.MonkeyPatch
) -> None:
    HfApi().create_repo(REPO, repo_type="dataset")
    repository = hub.repository("datasets", REPO)
    hub.users["hf_other"] = "other"

    def refused(name: str, message: str) -> None:
        with pytest.raises(FileNotFoundError, match=message) as told:
            stream_published(name, split="train")
        assert "\n" not in str(told.value)

    refused(f"{USER}/nothing", "there is none, or it is private")
    refused(f"{REPO}@v9", "it has no revision 'v9'")
    refused(REPO, r"it has no README\.md")
    monkeypatch.setenv("HF_TOKEN", "hf_other")
    repository.gated = True
    refused(REPO, "it is gated, and the token has no access")
    repository.private = True
    refused(REPO, "there is none, or it is private")
    monkeypatch.setattr("huggingface_hub.constants.ENDPOINT", "http://127.0.0.1:9")
    refused(REPO, "neither a folder here nor a data set that the Hub gave")


@pytest.mark.parametrize(
    ("options", "message"),
    [
        (["--target_share", 0.5], r"target_share=0.5 draws some clips many times .*--streaming"),
        (["--kind", "autoencoder"], r"kind='autoencoder' does not read .*'streaming'"),
        (["--resample"], "resample is for wav files, but --streaming"),
        (["--clip_memory_gib", 1], r"clip_memory_gib=1.0 keeps .*, but --streaming keeps none"),
        (["--shuffle_buffer_size", 0], "shuffle_buffer_size=0 must be at least 1"),
    ],
)
def test_what_a_stream_cannot_do_is_refused_before_anything_is_asked_for(
    options: list[Any], message: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("assembly.training_clips.stream_published", None)
    words = ["--data_dir", REPO, "--streaming", "--output_dir", tmp_path / "run", *options]
    with pytest.raises(ValueError, match=message) as refused:
        run_script(train, words, monkeypatch)
    assert "\n" not in str(refused.value)
    assert not (tmp_path / "run").exists()


def test_recordings_that_are_not_published_are_refused_in_one_line(
    factory_dir: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    words = [*STREAMED, "--data_dir", factory_dir, "--output_dir", tmp_path / "run"]
    with pytest.raises(ValueError, match=r"no published recordings.*data_scripts\.publish"):
        run_script(train, words, monkeypatch)


@pytest.mark.slow  # three processes
def test_two_processes_train_on_a_stream_as_one_does(published: Path, tmp_path: Path) -> None:
    options = ["--data_dir", published, "--num_train_epochs", 2, "--dataloader_num_workers", 2]
    assert_two_processes_train_as_one([*STREAMED, *options], tmp_path)

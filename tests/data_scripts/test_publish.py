"""Laws of publishing: what is loaded was recorded, and nothing half-done passes for whole."""

import hashlib
import io
import json
from pathlib import Path

import datasets
import numpy as np
import pyarrow.parquet as pq
import pytest
import soundfile
from datasets.distributed import split_dataset_by_node
from huggingface_hub import DatasetCard
from torch.utils.data._utils import worker

from data_scripts import publish
from data_scripts.clip_files import find_clips
from data_scripts.near_far import decoded, load_near_far
from data_scripts.publish import main, plan_shards, publish_recordings

SMALL = 4_000  # bytes: a shard has two of the clips below


@pytest.fixture
def output_dir(tmp_path):
    return tmp_path / "PARQUET"


@pytest.fixture
def load(tmp_path):
    def load(folder, **options):
        return load_near_far(folder, cache_dir=tmp_path / "cache", **options)

    return load


@pytest.fixture
def all_subsets(dev_set, write_clip):
    """Five clips each of fan and ToyCar, and Sander's additional training and evaluation clips."""
    for index in range(3):
        write_clip(f"eval_data/raw/Sander/train/section_00_source_train_normal_000{index}_s_2.wav")
        write_clip(f"eval_data/raw/Sander/test/section_00_000{index}.wav")


def files(folder):
    """Return what a published folder holds, by path; hidden files are not part of it."""
    return {
        path.relative_to(folder).as_posix(): path.read_bytes()
        for path in sorted(folder.rglob("*"))
        if path.is_file() and not path.name.startswith(".")
    }


def rows(dataset):
    return [dict(row) for row in dataset]


@pytest.mark.parametrize("size", [SMALL, "1GB"])
def test_published_recordings_load_as_the_recordings_do(
    all_subsets, data_dir, output_dir, load, size
):
    publish_recordings(data_dir, output_dir, max_shard_size=size)
    raw, published, stream = load(data_dir), load(output_dir), load(output_dir, streaming=True)
    assert list(published) == list(stream) == list(raw) == ["train", "test"]
    for split, clips in raw.items():
        assert rows(published[split]) == rows(stream[split]) == rows(clips)
        assert published[split].features == clips.features
    chosen = {"machine_types": ["fan", "Sander"], "subsets": ["eval_test", "dev"]}
    for split, clips in load(data_dir, **chosen).items():
        assert rows(load(output_dir, **chosen)[split]) == rows(clips)


@pytest.mark.parametrize(
    ("year", "names"),
    [
        (2020, ["train/normal_id_00_00000000.wav", "test/anomaly_id_02_00000000.wav"]),
        (
            2021,
            [
                "train/section_00_source_train_normal_0000_strength_1_ambient.wav",
                "source_test/section_00_source_test_anomaly_0001.wav",
                "target_test/section_00_target_test_normal_0000.wav",
            ],
        ),
        (2024, ["train/section_00_source_train_normal_0001_noAttribute.wav"]),
    ],
)
def test_a_mono_year_has_no_far_and_what_names_do_not_tell_stays_unknown(
    write_clip, data_dir, output_dir, load, year, names
):
    for name in [*names, *(["test/section_00_0001.wav"] if year == 2024 else [])]:
        write_clip(f"dev_data/raw/fan/{name}", num_channels=1)
    publish_recordings(data_dir, output_dir, year=year)
    raw, published = decoded(load(data_dir, year=year)), decoded(load(output_dir, year=year))
    for split in ("train", "test"):
        assert len(published[split]) == len(raw[split])
        for row, due in zip(published[split], raw[split], strict=True):
            assert row["far"] is None
            np.testing.assert_array_equal(row.pop("near"), due.pop("near"))
            assert row == due
    unknown = published["test"][0]
    assert unknown["domain"] is None if year in (2020, 2024) else unknown["domain"] == "source"


@pytest.mark.parametrize("subtype", ["PCM_16", "PCM_24", "FLOAT"])
def test_no_sample_changes(write_clip, data_dir, output_dir, load, rng, subtype):
    loud = 1.5 if subtype == "FLOAT" else 0.99
    name = "fan/train/section_00_source_train_normal_0000_spd_1.wav"
    write_clip(name, rng.uniform(-loud, loud, size=(300, 2)), subtype=subtype)
    publish_recordings(data_dir, output_dir)
    row = load(output_dir)["train"][0]
    original = soundfile.read(data_dir / name, dtype="float64")[0]
    for channel, column in enumerate(("near", "far")):
        stored = soundfile.read(io.BytesIO(row[column]["bytes"]), dtype="float64")[0]
        np.testing.assert_array_equal(stored, original[:, channel])


def test_every_machine_type_is_a_configuration_that_load_dataset_streams(
    all_subsets, data_dir, output_dir, load, tmp_path
):
    publish_recordings(data_dir, output_dir)
    assert set(datasets.get_dataset_config_names(str(output_dir))) == {"Sander", "ToyCar", "fan"}
    due = load(data_dir, machine_types=["fan"])
    streams = datasets.load_dataset(str(output_dir), "fan", streaming=True)
    cached = datasets.load_dataset(str(output_dir), "fan", cache_dir=str(tmp_path / "other"))
    for split in ("train", "test"):
        # As the Hub's viewer wants it: a player for each microphone.
        assert streams[split].features["far"] == datasets.Audio(sampling_rate=16_000)
        for found in (decoded(streams)[split], decoded(cached[split])):
            for row, clip in zip(found, decoded(due)[split], strict=True):
                np.testing.assert_array_equal(row.pop("near"), clip.pop("near"))
                np.testing.assert_array_equal(row.pop("far"), clip.pop("far"))
                assert row == clip
    with pytest.raises(ValueError, match="BuilderConfig 'pump' not found"):
        datasets.load_dataset(str(output_dir), "pump", streaming=True)


def test_the_same_recordings_give_the_same_bytes_and_none_of_them_is_of_this_computer(
    all_subsets, data_dir, output_dir, tmp_path
):
    main(["--data_dir", str(data_dir), "--output_dir", str(output_dir)])
    (tmp_path / "elsewhere").mkdir()
    moved = data_dir.rename(tmp_path / "elsewhere" / "moved")
    publish_recordings(moved, tmp_path / "AGAIN")
    assert files(output_dir) == files(tmp_path / "AGAIN")
    local = [
        str(tmp_path).encode(),
        data_dir.name.encode() + b"/",
        Path.home().name.encode() + b"/",
    ]
    for path, content in files(output_dir).items():
        assert not [word for word in local if word in content], path
    assert {path.rpartition(".")[2] for path in files(output_dir)} == {"md", "json", "parquet"}


class PowerCutError(Exception):
    """What ends a run in the middle of a file."""


def interrupt(monkeypatch, after):
    """Let publishing stop when so many clips were written."""
    make = publish.NearFarMachineSounds._generate_tables
    written = []

    def tables(self, clips):
        for table in make(self, clips):
            if len(written) == after:
                raise PowerCutError
            written.append(table)
            yield table

    monkeypatch.setattr(publish.NearFarMachineSounds, "_generate_tables", tables)


def test_an_interrupted_run_keeps_what_is_done_and_ends_as_one_that_was_not(
    all_subsets, data_dir, output_dir, tmp_path, monkeypatch, load
):
    options = {"max_shard_size": SMALL}
    publish_recordings(data_dir, tmp_path / "WHOLE", **options)
    with monkeypatch.context() as patched:
        interrupt(patched, after=7)  # in fan's second file: the first clip of two
        with pytest.raises(PowerCutError):
            publish_recordings(data_dir, output_dir, **options)
    done = {path: (output_dir / path).stat() for path in files(output_dir)}
    assert set(done) < set(files(tmp_path / "WHOLE"))
    assert len(done) == 4
    assert not list(output_dir.rglob(".partial*"))
    with pytest.raises(FileNotFoundError, match=r"README.md, so its publication was not finished"):
        load(output_dir)
    publish_recordings(data_dir, output_dir, **options)
    assert files(output_dir) == files(tmp_path / "WHOLE")
    for path, state in done.items():
        assert (output_dir / path).stat().st_mtime_ns == state.st_mtime_ns


@pytest.mark.parametrize("damage", ["flipped", "cut", "gone"])
def test_a_finished_file_that_was_damaged_is_written_again(
    dev_set, data_dir, output_dir, damage, caplog
):
    publish_recordings(data_dir, output_dir)
    before = files(output_dir)
    path = output_dir / "2026/dev/fan/train-00000-of-00001.parquet"
    content = bytearray(path.read_bytes())
    content[len(content) // 2] ^= 1
    if damage == "gone":
        path.unlink()
    else:
        path.write_bytes(content if damage == "flipped" else content[:-100])
    publish_recordings(data_dir, output_dir)
    assert files(output_dir) == before
    assert ("has changed since it was written" in caplog.text) == (damage != "gone")


def test_a_clip_that_changed_is_published_anew_and_the_others_are_left(
    dev_set, write_clip, data_dir, output_dir, load
):
    publish_recordings(data_dir, output_dir)
    states = {path: (output_dir / path).stat().st_mtime_ns for path in files(output_dir)}
    name = "fan/train/section_00_source_train_normal_0000_spd_1.wav"
    samples = write_clip(f"dev_data/raw/{name}")
    publish_recordings(data_dir, output_dir)
    row = decoded(load(output_dir, machine_types=["fan"]))["train"][0]
    np.testing.assert_array_equal(row["near"] * 32768, samples[:, 0])
    changed = {path for path, ns in states.items() if (output_dir / path).stat().st_mtime_ns != ns}
    assert {path for path in changed if path.endswith(".parquet")} == {
        "2026/dev/fan/train-00000-of-00001.parquet"
    }


def test_another_size_leaves_no_file_of_the_one_before(all_subsets, data_dir, output_dir, tmp_path):
    publish_recordings(data_dir, output_dir, max_shard_size=SMALL)
    publish_recordings(data_dir, output_dir)
    publish_recordings(data_dir, tmp_path / "ONCE")
    assert files(output_dir) == files(tmp_path / "ONCE")


def test_subsets_published_one_after_the_other_are_together_what_they_are_at_once(
    all_subsets, data_dir, output_dir, tmp_path
):
    for subset in ("eval_test", "dev", "eval_train"):
        publish_recordings(data_dir, output_dir, subsets=[subset])
    publish_recordings(data_dir, tmp_path / "ONCE")
    assert files(output_dir) == files(tmp_path / "ONCE")


@pytest.mark.parametrize("limit", [1, SMALL, 10**9])
def test_files_are_stretches_of_the_clips_of_a_machine_and_no_clip_is_lost(
    all_subsets, data_dir, limit
):
    clips = find_clips(data_dir, year=2026)
    plan = plan_shards(clips, year=2026, max_shard_size=limit)
    assert [clip for shard in plan for clip in shard.clips] == clips
    for shard in plan:
        assert {(c.subset, c.machine_type, c.split) for c in shard.clips} == {shard.group[1:]}
        assert len(shard.clips) == 1 or sum(c.num_bytes for c in shard.clips) <= 1.5 * limit


def test_a_reader_has_a_row_group_in_memory_and_not_a_file(
    dev_set, data_dir, output_dir, monkeypatch
):
    monkeypatch.setattr(publish, "ROW_GROUP_BYTES", SMALL)
    publish_recordings(data_dir, output_dir)
    footer = pq.read_metadata(output_dir / "2026/dev/fan/train-00000-of-00001.parquet")
    assert [footer.row_group(i).num_rows for i in range(footer.num_row_groups)] == [3]
    monkeypatch.setattr(publish, "ROW_GROUP_BYTES", SMALL // 4)
    publish_recordings(data_dir, output_dir.with_name("SMALLER"))
    footer = pq.read_metadata(
        output_dir.with_name("SMALLER") / "2026/dev/fan/train-00000-of-00001.parquet"
    )
    assert [footer.row_group(i).num_rows for i in range(footer.num_row_groups)] == [1, 1, 1]


@pytest.mark.parametrize("num_clips", [7, 13])
def test_processes_and_workers_share_a_stream_without_a_clip_twice_or_left_out(
    write_clip, data_dir, output_dir, load, monkeypatch, num_clips
):
    for index in range(num_clips):
        write_clip(f"fan/train/section_00_source_train_normal_{index:04d}_spd_1.wav")
    publish_recordings(data_dir, output_dir, max_shard_size=SMALL)
    stream = load(output_dir, streaming=True)["train"]
    seen = []
    for rank in range(2):
        share = split_dataset_by_node(stream, rank=rank, world_size=2)
        for number in range(2):  # as a DataLoader's worker sees itself
            info = worker.WorkerInfo(id=number, num_workers=2, seed=0, dataset=share)
            with monkeypatch.context() as patched:
                patched.setattr(worker, "_worker_info", info)
                seen.append([row["file_name"] for row in share])
    names = [row["file_name"] for row in stream]
    assert sorted(name for part in seen for name in part) == names
    assert len(names) == num_clips
    assert sum(bool(part) for part in seen) >= 2


def required(description):
    """Return what the Croissant format 1.0 requires of every data set that is not there."""
    keys = ("@context", "@type", "conformsTo", "description", "license", "name", "url", "creator")
    return [key for key in (*keys, "datePublished") if not description.get(key)]


def test_the_croissant_description_is_whole_and_agrees_with_the_files(
    all_subsets, data_dir, output_dir, load
):
    publish_recordings(data_dir, output_dir, repo_id="someone/machines", max_shard_size=SMALL)
    description = json.loads((output_dir / "croissant.json").read_text())
    assert not required(description)
    assert description["conformsTo"] == "http://mlcommons.org/croissant/1.0"
    assert description["url"] == "https://huggingface.co/datasets/someone/machines"
    assert "2606.01578" in description["citeAs"]

    ids, references = [], []

    def walk(node, *, within=""):
        if isinstance(node, list):
            for item in node:
                walk(item, within=within)
        elif isinstance(node, dict):
            if set(node) == {"@id"}:
                references.append(node["@id"])
            elif "@id" in node:
                assert node["@type"].startswith("cr:")
                assert node["name"]
                ids.append(node["@id"])
            for key, value in node.items():
                if key != "@context":
                    walk(value, within=key)

    walk(description)
    assert len(set(ids)) == len(ids)
    assert set(references) <= set(ids)

    parquet = {path: data for path, data in files(output_dir).items() if path.endswith("parquet")}
    objects = {item["@id"]: item for item in description["distribution"] if item["@id"] in parquet}
    assert objects.keys() == parquet.keys()
    for path, item in objects.items():
        assert item["contentSize"] == f"{len(parquet[path])} B"
        assert item["sha256"] == hashlib.sha256(parquet[path]).hexdigest()
    sets = {item["@id"]: item for item in description["distribution"] if "includes" in item}
    for name in ("fan", "ToyCar", "Sander"):
        found = {
            path.relative_to(output_dir).as_posix()
            for pattern in sets[f"files-of-{name}"]["includes"]
            for path in output_dir.glob(pattern)
        }
        assert found == {path for path in parquet if f"/{name}/" in path}
    records = {item["@id"]: item for item in description["recordSet"]}
    columns = load(output_dir)["train"].column_names
    assert [field["name"] for field in records["fan"]["field"]] == ["split", *columns]
    assert records["fan"]["description"] == "train: 3 clips, test: 2 clips"
    assert [row["splits/name"] for row in records["splits"]["data"]] == ["train", "test"]
    assert [row["domains/name"] for row in records["domains"]["data"]] == [
        "unknown",
        "source",
        "target",
    ]


def test_the_card_tells_configurations_splits_licence_and_citation(
    all_subsets, data_dir, output_dir
):
    publish_recordings(data_dir, output_dir)
    card = DatasetCard.load(output_dir / "README.md")
    data = card.data.to_dict()
    assert data["license"] == ["cc-by-nc-sa-4.0", "unknown"]
    infos = {info["config_name"]: info for info in data["dataset_info"]}
    assert {split["name"]: split["num_examples"] for split in infos["Sander"]["splits"]} == {
        "train": 3,
        "test": 3,
    }
    features = datasets.Features._from_yaml_list(infos["fan"]["features"])
    assert features["near"] == datasets.Audio(sampling_rate=16_000)
    assert features["condition"].names == ["normal", "anomaly"]
    assert "- development set: `unknown`" in card.text
    assert "Commercial use is not permitted" in card.text
    assert "2606.01578" in card.text
    assert "| Sander | eval_test | test | 00 | 3 | 3 unknown | 3 unknown |" in card.text
    assert "| fan | dev | train | 00 | 3 | 2 source, 1 target | 3 normal |" in card.text


def test_a_declared_licence_counts_and_a_simulation_owns_up(dev_set, data_dir, output_dir):
    (data_dir / "factory.json").write_text("{}")
    publish_recordings(data_dir, output_dir)
    card = DatasetCard.load(output_dir / "README.md")
    assert card.data.license == "unknown"
    assert "simulated" in card.data.tags
    assert "No machine made these sounds" in card.text
    publish_recordings(data_dir, output_dir, licenses=["cc-by-4.0"])
    card = DatasetCard.load(output_dir / "README.md")
    assert card.data.license == "cc-by-4.0"
    assert "not known when this card was made" not in card.text


def test_another_year_is_refused_beside_the_one_that_is_there(
    dev_set, write_clip, output_dir, data_dir, tmp_path
):
    publish_recordings(data_dir, output_dir)
    before = files(output_dir)
    mono = tmp_path / "DATA" / "mono"
    write_clip("mono/fan/train/normal_id_00_00000000.wav", num_channels=1)
    with pytest.raises(ValueError, match=r"holds recordings of 2026.*Choose another output_dir"):
        publish_recordings(mono, output_dir, year=2020)
    assert files(output_dir) == before


@pytest.mark.parametrize(
    ("clip", "options", "message"),
    [
        ({"sampling_rate": 8_000}, [], "sampled at 8000 Hz, but this model expects 16000 Hz"),
        ({}, ["--machine_types", "pump"], r"machine_types \['pump'\] are not in .*'fan'"),
        ({}, ["--subset", "eval_test"], "holds no clips of subsets='eval_test'"),
        ({}, ["--year", "2024"], "has 2 channels; recordings of 2024 have 1"),
        ({}, ["--max_shard_size", "0"], "Give bytes, or such as '256MB'"),
        ({}, ["--max_shard_size", "much"], "max_shard_size='much' is no size"),
        (None, [], "holds no machine folder"),
    ],
)
def test_what_cannot_be_published_is_said_in_one_line(
    write_clip, data_dir, output_dir, clip, options, message
):
    data_dir.mkdir()
    if clip is not None:
        write_clip("fan/train/section_00_source_train_normal_0000_spd_1.wav", **clip)
    with pytest.raises(SystemExit, match=message) as stopped:
        main(["--data_dir", str(data_dir), "--output_dir", str(output_dir), *options])
    assert "\n" not in str(stopped.value)
    assert not output_dir.exists()


def cut(folder):
    path = folder / "2026/dev/fan/train-00000-of-00001.parquet"
    path.write_bytes(path.read_bytes()[:-7])


def remove(folder):
    (folder / "2026/dev/fan/train-00000-of-00001.parquet").unlink()


def leave(folder):
    pass


@pytest.mark.parametrize(
    ("damage", "options", "error", "message"),
    [
        (cut, {}, ValueError, r"2026/dev/fan/train-00000-of-00001.parquet is not a whole Parquet"),
        (remove, {}, FileNotFoundError, "lacks 2026/dev/fan/train-00000-of-00001.parquet"),
        (leave, {"machine_types": ["pump"]}, ValueError, r"It holds: 'ToyCar', 'fan'"),
        (leave, {"subsets": ["eval_test"]}, FileNotFoundError, "It has 'dev'"),
        (leave, {"subsets": ["test"]}, ValueError, "Choose from 'dev'"),
        (leave, {"year": 2025}, ValueError, "recordings of 2026, but year=2025 was asked for"),
    ],
)
def test_what_cannot_be_loaded_is_named(
    dev_set, data_dir, output_dir, load, damage, options, error, message
):
    publish_recordings(data_dir, output_dir)
    damage(output_dir)
    with pytest.raises(error, match=message):
        load(output_dir, **options)

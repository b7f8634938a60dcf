"""Laws of the loader: nothing is lost, nothing is invented, and what is wrong is said."""

import io
import os
import subprocess
import sys
from pathlib import Path

import datasets
import numpy as np
import pytest
import soundfile

from data_scripts.clip_files import ClipError
from data_scripts.near_far import NearFarMachineSounds, decode_audio, decoded, known, load_near_far

REPOSITORY = Path(__file__).parents[2]
SAMPLE_2020 = REPOSITORY / ".." / "shared" / "data" / "dcase2020_sample"
TRAIN = "fan/train/section_00_source_train_normal_0000_spd_1.wav"
TEST = "fan/test/section_00_0003.wav"
COLUMNS = [
    "near",
    "far",
    "file_name",
    "machine_type",
    "section",
    "domain",
    "condition",
    "attributes",
    "year",
]


@pytest.fixture
def load(data_dir, tmp_path):
    """Call load_near_far on the written recordings, with a cache of its own."""

    def load(**options):
        return load_near_far(data_dir, cache_dir=tmp_path / "cache", **options)

    return load


def int16(audio):
    return soundfile.read(io.BytesIO(audio["bytes"]), dtype="int16")[0]


def rows(dataset):
    return [dict(row) for row in dataset]


def test_both_channels_come_back_bit_for_bit(dev_set, load):
    for split in load().values():
        for row in split:
            samples = dev_set[f"{row['machine_type']}/{row['file_name']}"]
            np.testing.assert_array_equal(int16(row["near"]), samples[:, 0])
            np.testing.assert_array_equal(int16(row["far"]), samples[:, 1])


def test_every_16_bit_value_is_decoded_as_its_32768th(write_clip, load):
    values = np.arange(-32768, 32768).astype(np.int16)
    write_clip(TRAIN, np.stack([values, values[::-1]], axis=1))
    row = decoded(load())["train"][0]
    assert row["near"].dtype == np.float32
    np.testing.assert_array_equal(row["near"] * 32768, values)
    np.testing.assert_array_equal(row["far"] * 32768, values[::-1])


def test_a_row_says_what_folder_and_name_say(dev_set, load):
    clips = load()
    assert clips["train"].column_names == COLUMNS
    assert {name: len(split) for name, split in clips.items()} == {"train": 6, "test": 4}
    row = clips["test"].remove_columns(["near", "far"])[3]
    assert row == {
        "file_name": "section_00_target_test_anomaly_0000_spd_1.wav",
        "machine_type": "fan",
        "section": 0,
        "domain": clips["test"].features["domain"].str2int("target"),
        "condition": clips["test"].features["condition"].str2int("anomaly"),
        "attributes": "spd_1",
        "year": 2026,
    }


def test_a_machine_without_attributes_has_empty_ones(dev_set, load):
    assert set(load(machine_types=["ToyCar"])["train"]["attributes"]) == {""}


def test_an_evaluation_clip_has_neither_domain_nor_condition(write_clip, load):
    write_clip(f"eval_data/raw/{TEST}")
    clips = load()["test"]
    assert (clips[0]["domain"], clips[0]["condition"]) == (-1, -1)
    row = decoded(clips)[0]
    assert (row["domain"], row["condition"], row["attributes"]) == (None, None, "")


def test_an_evaluation_clip_of_2021_has_a_domain_and_no_condition(write_clip, load):
    write_clip("fan/source_test/section_03_source_test_0000.wav", num_channels=1)
    row = decoded(load(year=2021))["test"][0]
    assert (row["domain"], row["condition"]) == ("source", None)
    assert (row["machine"], row["far"]) == ("2021/fan/03", None)


def test_clips_of_one_machine_can_have_different_lengths(write_clip, load, rng):
    lengths = {0: 1, 1: 17, 2: 5_000}
    for index, length in lengths.items():
        noise = rng.integers(-9, 9, size=(length, 2)).astype(np.int16)
        write_clip(f"fan/train/section_00_source_train_normal_000{index}_spd_1.wav", noise)
    found = decoded(load())["train"]
    assert [(len(row["near"]), len(row["far"])) for row in found] == [
        (length, length) for length in lengths.values()
    ]


@pytest.mark.parametrize("subtype", ["PCM_U8", "PCM_24", "PCM_32", "FLOAT", "DOUBLE"])
def test_other_codings_are_stored_without_loss(write_clip, data_dir, load, rng, subtype):
    loud = 1.5 if subtype in ("FLOAT", "DOUBLE") else 0.99  # beyond full scale where that exists
    write_clip(TRAIN, rng.uniform(-loud, loud, size=(300, 2)), subtype=subtype)
    original = soundfile.read(data_dir / TRAIN, dtype="float64")[0]
    row = load()["train"][0]
    stored = [
        soundfile.read(io.BytesIO(row[c]["bytes"]), dtype="float64")[0] for c in ("near", "far")
    ]
    np.testing.assert_array_equal(np.stack(stored, axis=1), original)
    np.testing.assert_array_equal(decode_audio(row["near"]), original[:, 0].astype(np.float32))


@pytest.mark.parametrize("root", ["dev_data/raw", "dev_data", "."])
def test_development_layouts_are_found(write_clip, load, root):
    write_clip(f"{root}/{TRAIN}")
    write_clip(f"{root}/{TEST}")
    assert load(subsets=["dev"]).num_rows == {"train": 1, "test": 1}


def test_subsets_choose_among_development_and_evaluation(dev_set, write_clip, load):
    write_clip("eval_data/raw/Sander/train/section_00_source_train_normal_0000_spd_2.wav")
    write_clip("eval_data/raw/Sander/test/section_00_0000.wav")
    assert load().num_rows == {"train": 7, "test": 5}
    assert load(subsets=["dev"]).num_rows == {"train": 6, "test": 4}
    assert load(subsets=["eval_train"]).num_rows == {"train": 1}
    assert load(subsets=["eval_test"]).num_rows == {"test": 1}
    assert load(subsets=["eval_train", "dev"]).num_rows == {"train": 7, "test": 4}


def test_machine_types_keep_only_what_was_asked_for(dev_set, load):
    assert set(load(machine_types="fan")["train"]["machine_type"]) == {"fan"}


def test_supplemental_clips_and_other_files_are_left_alone(write_clip, data_dir, load):
    write_clip("fan/train/section_00_source_train_normal_0001_spd_1.wav", num_channels=1)
    write_clip("fan/supplemental/section_00_machine_0001_.wav", num_channels=1)
    (data_dir / "fan/attributes_00.csv").write_text("file_name,d1p,d1v\n")
    (data_dir / "fan/train/._section_00_source_train_normal_0001_spd_1.wav").write_bytes(b"junk")
    assert load(year=2025).num_rows == {"train": 1}


def test_two_processes_build_the_rows_that_one_builds(dev_set, data_dir, tmp_path):
    one = load_near_far(data_dir, cache_dir=tmp_path / "one")
    two = load_near_far(data_dir, cache_dir=tmp_path / "two", num_proc=2)
    for split in ("train", "test"):
        assert rows(two[split]) == rows(one[split])


def test_streaming_gives_the_rows_of_the_cache(dev_set, load):
    cached, streamed = load(), load(streaming=True)
    assert isinstance(streamed, datasets.IterableDatasetDict)
    for split in ("train", "test"):
        assert rows(streamed[split]) == rows(cached[split])
        assert streamed[split].num_shards == len(cached[split])


def test_streaming_writes_no_rows_to_the_cache(dev_set, load, tmp_path):
    rows(load(streaming=True)["train"])
    assert not list(tmp_path.glob("cache/**/*.arrow"))


@pytest.mark.parametrize("streaming", [False, True])
def test_decoding_a_dict_of_splits_decodes_each_split(dev_set, load, streaming):
    clips = load(streaming=streaming)
    together, apart = decoded(clips), decoded(clips["test"])
    for a, b in zip(together["test"], apart, strict=True):
        assert a.keys() == b.keys() == {*COLUMNS, "machine"}
        np.testing.assert_array_equal(a["near"], b["near"])
        assert a["near"].dtype == b["near"].dtype == np.float32
    assert [row["machine"] for row in apart] == ["2026/ToyCar/00"] * 2 + ["2026/fan/00"] * 2
    assert [row["condition"] for row in apart] == ["normal", "anomaly"] * 2
    assert [row["domain"] for row in apart] == ["source", "target"] * 2


def test_streamed_and_cached_rows_decode_alike(dev_set, load):
    for a, b in zip(decoded(load())["train"], decoded(load(streaming=True))["train"], strict=True):
        np.testing.assert_array_equal(a.pop("near"), b.pop("near"))
        np.testing.assert_array_equal(a.pop("far"), b.pop("far"))
        assert a == b


def test_a_decoded_dataset_gives_batches_columns_and_nothing(dev_set, load):
    clips = decoded(load()["train"])
    assert [len(near) for near in clips[:2]["near"]] == [400, 400]
    assert list(clips["domain"]) == ["source", "source", "target"] * 2
    assert clips[0:0]["near"] == []
    assert len(clips.select_columns(["near"])[0]["near"]) == 400


@pytest.mark.parametrize("prepare", [lambda clips: clips, decoded])
def test_what_is_known_of_a_clip_is_its_decoded_row_without_audio(
    dev_set, write_clip, load, prepare
):
    write_clip("eval_data/raw/fan/test/section_00_0000.wav")
    clips = load()["test"]
    due = [{k: v for k, v in row.items() if k not in ("near", "far")} for row in decoded(clips)]
    assert known(prepare(clips)) == due


def test_parquet_keeps_features_and_rows(dev_set, data_dir, tmp_path):
    builder = NearFarMachineSounds(data_dir=str(data_dir), cache_dir=str(tmp_path / "cache"))
    builder.download_and_prepare(output_dir=str(tmp_path / "parquet"), file_format="parquet")
    files = {
        split: str(tmp_path / f"parquet/near_far-{split}.parquet") for split in ("train", "test")
    }
    reloaded = datasets.load_dataset("parquet", data_files=files, cache_dir=str(tmp_path / "again"))
    original = load_near_far(data_dir, cache_dir=tmp_path / "cache")
    assert reloaded["train"].features == original["train"].features
    kept = [
        dict(row, near=row["near"]["bytes"], far=row["far"]["bytes"]) for row in reloaded["test"]
    ]
    due = [
        dict(row, near=row["near"]["bytes"], far=row["far"]["bytes"]) for row in original["test"]
    ]
    assert kept == due
    np.testing.assert_array_equal(
        decoded(reloaded)["test"][0]["far"], decoded(original)["test"][0]["far"]
    )


def test_the_builder_works_offline_in_a_process_without_torchcodec(dev_set, data_dir, tmp_path):
    code = (
        "import sys; sys.modules['torchcodec'] = None\n"
        "from data_scripts.near_far import decoded, load_near_far\n"
        f"clips = load_near_far({str(data_dir)!r}, cache_dir={str(tmp_path / 'cache')!r})\n"
        "print(decoded(clips)['train'][0]['near'].shape)\n"
    )
    environment = {**os.environ, "HF_HUB_OFFLINE": "1", "HF_HOME": str(tmp_path / "home")}
    done = subprocess.run(
        [sys.executable, "-c", code],
        cwd=REPOSITORY,
        env=environment,
        capture_output=True,
        text=True,
    )
    assert done.stdout.strip() == "(400,)", done.stderr


def test_the_dataset_describes_itself(dev_set, load):
    info = load()["train"].info
    assert "unknown" in info.description
    assert "2606.01578" in info.citation
    assert info.features["near"] == datasets.Audio(sampling_rate=16_000, decode=False)


def test_a_second_call_reuses_the_cache(dev_set, load):
    def written():
        return [Path(file["filename"]).stat().st_mtime_ns for file in load()["train"].cache_files]

    assert written() == written() != []


def test_another_option_makes_another_cache(dev_set, load):
    assert load(machine_types=["fan"]).num_rows["train"] == 3
    assert load().num_rows["train"] == 6


def test_a_deleted_clip_is_noticed(dev_set, load, data_dir):
    assert load().num_rows["train"] == 6
    (data_dir / "dev_data/raw" / TRAIN).unlink()
    assert load().num_rows["train"] == 5


def test_a_changed_sample_is_noticed(write_clip, load):
    samples = write_clip(TRAIN)
    np.testing.assert_array_equal(int16(load()["train"][0]["far"]), samples[:, 1])
    samples[123, 1] += 1
    write_clip(TRAIN, samples)
    np.testing.assert_array_equal(int16(load()["train"][0]["far"]), samples[:, 1])


def test_a_builder_made_by_hand_notices_too(dev_set, data_dir, tmp_path):
    def cache_dir():
        return NearFarMachineSounds(data_dir=str(data_dir), cache_dir=str(tmp_path)).cache_dir

    before = cache_dir()
    assert cache_dir() == before
    (data_dir / "dev_data/raw" / TRAIN).unlink()
    assert cache_dir() != before


def test_resampling_keeps_a_tone_and_its_loudness(write_clip, load):
    time = np.arange(44_100) / 44_100
    tone = 0.5 * np.sin(2 * np.pi * 440 * time)
    write_clip(TRAIN, np.stack([tone, 2 * tone], axis=1), sampling_rate=44_100, subtype="FLOAT")
    row = decoded(load(resample=True))["train"][0]
    expected = 0.5 * np.sin(2 * np.pi * 440 * np.arange(16_000) / 16_000)
    inner = slice(500, -500)  # the filter sees silence before and behind the clip
    np.testing.assert_allclose(row["near"][inner], expected[inner], atol=2e-3)
    np.testing.assert_allclose(row["far"], 2 * row["near"], rtol=1e-5, atol=1e-7)


def test_resampling_reads_integers_at_the_scale_of_decoding(write_clip, load, rng):
    samples = rng.integers(-32768, 32768, size=(500, 2)).astype(np.int16)
    write_clip(TRAIN, samples, sampling_rate=8_000)
    write_clip(TEST, samples / 32768, sampling_rate=8_000, subtype="FLOAT")
    clips = decoded(load(resample=True))
    np.testing.assert_array_equal(clips["train"][0]["near"], clips["test"][0]["near"])
    np.testing.assert_array_equal(clips["train"][0]["far"], clips["test"][0]["far"])


def test_resampling_does_not_clip_the_overshoot_of_an_edge(write_clip, load):
    write_clip(TRAIN, np.full((8_000, 2), -32768, dtype=np.int16), sampling_rate=8_000)
    near = decoded(load(resample=True))["train"][0]["near"]
    assert len(near) == 16_000
    assert near.min() < -1.0


def test_resampling_leaves_clips_of_16_khz_untouched(dev_set, load):
    assert rows(load(resample=True)["train"]) == rows(load()["train"])


def damaged(data: bytes) -> dict[str, bytes]:
    return {
        "cut": data[: len(data) // 2],
        "cut by one byte": data[:-1],
        "header": data[:20],
        "no samples": data[:44],
        "text": b"not a recording, " * 100,
        "empty": b"",
        "no riff": b"RIFX" + data[4:],
    }


@pytest.mark.parametrize(
    ("damage", "message"),
    [
        ("cut", r"is cut off: its header promises 400 samples, but the file holds 194\. Copy"),
        ("cut by one byte", "is cut off: .* promises 400 samples, but the file holds 399"),
        ("header", "is not a readable WAV file .*Copy or download it again"),
        ("no samples", "is cut off: .* promises 400 samples, but the file holds 0"),
        ("text", r"is not a readable WAV file \(Format not recognised"),
        ("empty", "is an empty file"),
        ("no riff", "is not a readable WAV file"),
    ],
)
def test_a_damaged_clip_is_named(write_clip, data_dir, load, damage, message):
    write_clip(TRAIN)
    write_clip(TEST)
    (data_dir / TEST).write_bytes(damaged((data_dir / TEST).read_bytes())[damage])
    with pytest.raises(ClipError, match=f"^{TEST} {message}"):
        load()


def test_a_flac_named_wav_is_refused(data_dir, load):
    (data_dir / TEST).parent.mkdir(parents=True)
    soundfile.write(data_dir / TEST, np.zeros((9, 2)), 16_000, format="FLAC")
    with pytest.raises(ClipError, match=f"^{TEST} is not a readable WAV file .*fLaC"):
        load()


def test_a_header_that_leaves_the_length_open_is_fine(write_clip, data_dir, load):
    samples = write_clip(TRAIN)
    data = bytearray((data_dir / TRAIN).read_bytes())
    data[40:44] = b"\xff" * 4  # as programs write that stream to a pipe
    (data_dir / TRAIN).write_bytes(data)
    np.testing.assert_array_equal(int16(load()["train"][0]["near"]), samples[:, 0])


def test_an_extensible_header_is_fine(data_dir, load, rng):
    samples = rng.integers(-(2**23), 2**23, size=(300, 2)).astype(np.int32) << 8
    (data_dir / TEST).parent.mkdir(parents=True)
    soundfile.write(data_dir / TEST, samples, 16_000, format="WAVEX", subtype="PCM_24")
    far = load()["test"][0]["far"]
    stored = soundfile.read(io.BytesIO(far["bytes"]), dtype="int32")[0]
    np.testing.assert_array_equal(stored, samples[:, 1])


def test_a_chunk_before_the_samples_is_fine(write_clip, data_dir, load):
    samples = write_clip(TRAIN)
    data = (data_dir / TRAIN).read_bytes()
    extra = b"LIST" + (5).to_bytes(4, "little") + b"INFO\0" + b"\0"  # odd size, padded
    (data_dir / TRAIN).write_bytes(data[:36] + extra + data[36:])
    np.testing.assert_array_equal(int16(load()["train"][0]["far"]), samples[:, 1])


@pytest.mark.parametrize(
    ("clip", "year", "written", "message"),
    [
        (
            TEST,
            2026,
            {"num_channels": 1},
            r"has 1 channel; near-far data has 2 \(0: near, 1: far\)",
        ),
        (TEST, 2026, {"num_channels": 3}, r"has 3 channels; near-far data has 2"),
        (
            TEST,
            2023,
            {"num_channels": 2},
            r"has 2 channels; recordings of 2023 have 1\. .*year=2026",
        ),
        (
            TEST,
            2026,
            {"sampling_rate": 44_100},
            "44100 Hz, but this model expects 16000 Hz.*resample=True",
        ),
        (
            TEST,
            2026,
            {"subtype": "ULAW"},
            "is coded as ULAW; expected 'PCM_U8', .*Convert it to PCM_16",
        ),
        (TEST, 2026, {"samples": np.zeros((0, 2))}, "holds no samples"),
        (TEST, 2020, {}, "is a name of 2022, 2023, .* but year=2020 .*Pass the year of"),
        (
            "fan/train/normal_id_00_00000071.wav",
            2026,
            {},
            "is a name of 2020, but year=2026 .*year=2020",
        ),
        (
            "fan/test/section_03_source_test_0000.wav",
            2022,
            {},
            "is a name of 2021, .*Pass year=2021",
        ),
        (
            "fan/train/section_00_source_test_normal_0000_a_1.wav",
            2026,
            {},
            "but its name says test",
        ),
        (
            "fan/test/section_00_source_train_normal_0000_a_1.wav",
            2026,
            {},
            "but its name says train",
        ),
        (
            "fan/source_test/section_00_target_test_normal_0000.wav",
            2021,
            {},
            "Move it to target_test/",
        ),
        (
            "fan/train/section_00_source_train_anomaly_0000_a_1.wav",
            2026,
            {},
            "is an anomaly, but tr",
        ),
        (
            "fan/train/section_00_machine_0001_.wav",
            2025,
            {},
            "is a supplemental clip, but lies in train",
        ),
        ("fan/train/recording 1.wav", 2026, {}, ": 'recording 1.wav' is not a DCASE clip name"),
    ],
)
def test_a_clip_that_does_not_fit_is_named_with_what_was_due(
    write_clip, load, tmp_path, clip, year, written, message
):
    write_clip(clip, **written)
    with pytest.raises(ValueError, match=f"^{clip}.*{message}"):
        load(year=year)
    assert not (tmp_path / "cache").exists()


def test_a_clip_that_is_there_twice_is_refused(write_clip, load):
    write_clip(TRAIN)
    write_clip(f"dev_data/raw/{TRAIN}")
    with pytest.raises(ClipError, match=f"^{TRAIN} and dev_data/raw/{TRAIN} have the same name"):
        load()


@pytest.mark.parametrize("num_proc", [None, 2])
@pytest.mark.parametrize("value", [np.nan, np.inf])
def test_a_sample_that_is_no_number_is_named_and_leaves_no_cache(
    write_clip, load, tmp_path, num_proc, value
):
    samples = np.zeros((9, 2), dtype=np.float32)
    samples[4, 1] = value
    write_clip("fan/train/section_00_source_train_normal_0001_spd_1.wav")
    write_clip(TRAIN, samples, subtype="FLOAT")
    with pytest.raises(ClipError, match=rf"^{TRAIN} .*\(sample 4 of channel 1\)"):
        load(num_proc=num_proc)
    assert not [path for path in tmp_path.glob("cache/**/*") if path.suffix in (".arrow", ".json")]


def test_streaming_names_a_clip_that_vanished(dev_set, load, data_dir):
    clips = load(streaming=True)
    (data_dir / "dev_data/raw" / TRAIN).unlink()
    with pytest.raises(ClipError, match=f"^dev_data/raw/{TRAIN} cannot be read"):
        rows(clips["train"])


def test_silence_is_loaded_with_one_warning_that_names_it(write_clip, load, caplog):
    silence = np.zeros((50, 2), dtype=np.int16)
    dead_far = silence.copy()
    dead_far[7, 0] = 1
    write_clip(TRAIN, silence)
    write_clip("fan/train/section_00_source_train_normal_0001_spd_1.wav", dead_far)
    write_clip("fan/train/section_00_source_train_normal_0002_spd_1.wav")
    clips = load()["train"]
    (record,) = [record for record in caplog.records if record.name == "data_scripts.near_far"]
    message = record.getMessage()
    assert f"{TRAIN} (near), {TRAIN} (far)" in message
    assert "0001_spd_1.wav (far)" in message
    assert "0002" not in message
    assert not int16(clips[0]["near"]).any()


def test_a_missing_folder_is_named(load):
    with pytest.raises(
        FileNotFoundError, match=r"DATA' is not a folder\. Give the folder that holds"
    ):
        load()


def test_a_folder_without_machines_says_what_was_expected(data_dir, load):
    (data_dir / "fan").mkdir(parents=True)
    with pytest.raises(
        FileNotFoundError, match=r"holds no machine folder\. Expected <machine>/train"
    ):
        load()


def test_an_empty_split_folder_is_named(dev_set, data_dir, load):
    (data_dir / "dev_data/raw/slider/train").mkdir(parents=True)
    with pytest.raises(
        FileNotFoundError, match=r"^dev_data/raw/slider/train .* holds no \.wav clip"
    ):
        load()


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"year": 2019}, r"year=2019 has no DCASE Task 2 data\. Choose from 2020, 2021"),
        ({"machine_types": ["fan", "pump"]}, r"machine_types \['pump'\] .* holds: 'ToyCar', 'fan'"),
        ({"subsets": ["train"]}, r"subsets \['train'\] do not exist\. Choose from 'dev', 'eval_tr"),
    ],
)
def test_an_option_that_does_not_exist_is_refused_with_those_that_do(
    dev_set, load, options, message
):
    with pytest.raises(ValueError, match=message):
        load(**options)


def test_a_subset_that_is_not_there_says_which_are(dev_set, load):
    with pytest.raises(FileNotFoundError, match=r"no clips of subsets='eval_test' .* It has 'dev'"):
        load(subsets=["eval_test"])


def audio(samples, sampling_rate=16_000):
    buffer = io.BytesIO()
    soundfile.write(buffer, samples, sampling_rate, format="WAV")
    return {"bytes": buffer.getvalue(), "path": "near/clip.wav"}


@pytest.mark.parametrize(
    ("audio", "error", "message"),
    [
        (
            audio(np.zeros(9), 8_000),
            ValueError,
            "near/clip.wav is sampled at 8000 Hz, expected 16000 Hz",
        ),
        (audio(np.zeros((9, 2))), ValueError, "has 2 channels, expected 1"),
        ({"bytes": b"junk", "path": None}, ValueError, "Audio cannot be decoded"),
        ({"bytes": None, "path": None}, ValueError, "neither bytes nor a path"),
        (np.zeros(9), TypeError, r"came as ndarray.*Audio\(decode=False\)"),
    ],
)
def test_audio_that_cannot_be_decoded_says_why(audio, error, message):
    with pytest.raises(error, match=message):
        decode_audio(audio)


def test_audio_is_decoded_from_a_path_too(write_clip, data_dir):
    samples = write_clip(TRAIN, num_channels=1)
    decoded_samples = decode_audio({"bytes": None, "path": str(data_dir / TRAIN)})
    np.testing.assert_array_equal(decoded_samples * 32768, samples[:, 0])


def test_decoding_something_else_says_what_it_takes():
    with pytest.raises(TypeError, match="decoded got a list, expected a dataset"):
        decoded([])


@pytest.mark.skipif(not SAMPLE_2020.is_dir(), reason="the sample of DCASE 2020 is not here")
def test_real_recordings_of_2020_load_bit_for_bit(tmp_path):
    clips = load_near_far(SAMPLE_2020, year=2020, cache_dir=tmp_path)
    assert clips.num_rows == {"train": 75, "test": 1}
    for split, condition in (("train", "normal"), ("test", "anomaly")):
        for row in clips[split].select(range(0, len(clips[split]), 5)):
            original = SAMPLE_2020 / "fan" / split / row["file_name"]
            np.testing.assert_array_equal(
                int16(row["near"]), soundfile.read(original, dtype="int16")[0]
            )
        for row in decoded(clips[split]):
            assert (row["far"], row["domain"], row["section"]) == (None, None, 0)
            assert (row["condition"], row["machine"]) == (condition, "2020/fan/00")

import copy
import json
from collections.abc import Iterator
from types import SimpleNamespace

import datasets
import numpy as np
import pytest
import soundfile
import torch

from modeling import (
    AsdConfig,
    AsdFeatureExtractor,
    AsdForProxyClassification,
    AsdModel,
    ReferenceBank,
    encoder_fingerprint,
)
from modeling.detector_checkpoint import DetectorPreTrainedModel
from modeling.pipeline_asd import AnomalousSoundDetectionPipeline

FAN, PUMP = "2026/fan/00", "2026/pump/00"
RATE = 16_000
# float32 arithmetic in batches of another shape, at distances of about 0.1.
SAME = {"rel": 1e-4, "abs": 1e-6}


def recording(seed: int, num_samples: int = 6_000) -> np.ndarray:
    """Return near and far, (num_samples, 2) int16: a hum, and noise that both hear."""
    rng = np.random.default_rng(seed)
    hum = 6_000 * np.sin(np.arange(num_samples) * 0.05 * (1 + 0.02 * seed))
    noise = 2_000 * rng.standard_normal(num_samples)
    return np.stack([hum + noise, 0.2 * hum + 2 * noise], axis=1).astype(np.int16)


@pytest.fixture(scope="module")
def extractor() -> AsdFeatureExtractor:
    return AsdFeatureExtractor(peak_normalize=True)


@pytest.fixture(scope="module")
def model() -> AsdForProxyClassification:
    encoder_config = {
        "model_type": "nearfar_beats",
        "hidden_size": 32,
        "num_hidden_layers": 2,
        "num_attention_heads": 2,
        "intermediate_size": 64,
        "patch_embedding_size": 16,
    }
    config = AsdConfig(
        encoder_config=encoder_config, front_end="complex_least_squares", layers=[1, 2]
    )
    with torch.random.fork_rng():
        torch.manual_seed(0)
        return AsdForProxyClassification(config).eval()


@pytest.fixture(scope="module")
def embed(model, extractor):
    """Return a function that embeds recordings, the front end as strong as told."""

    def embed(seeds, *, strength: float) -> torch.Tensor:
        near, far = zip(*[recording(seed).T / 32768 for seed in seeds], strict=True)
        inputs = extractor(list(near), list(far), sampling_rate=RATE, return_tensors="pt")
        inputs.pop("has_far")
        strengths = torch.full((len(seeds),), strength)
        with torch.no_grad():
            return model(**inputs, front_end_strength=strengths).embedding

    return embed


@pytest.fixture(scope="module")
def bank(model, embed) -> ReferenceBank:
    """Return a bank of a fan, calibrated and guarded, and of a pump, neither."""

    def table(machine, seeds, *, strength):
        return {
            "embedding": embed(seeds, strength=strength).numpy(),
            "file_names": [f"{seed:04d}.wav" for seed in seeds],
            "machines": [machine] * len(seeds),
            "domains": ["source"] * len(seeds),
            "conditions": ["normal"] * len(seeds),
        }

    fan = table(FAN, range(8), strength=0.5)
    pump = table(PUMP, range(20, 24), strength=1.0)
    both = SimpleNamespace(**{key: np.concatenate([fan[key], pump[key]]) for key in fan})
    bank = ReferenceBank(model.config, fingerprint=encoder_fingerprint(model), guard={FAN: 0.5})
    return bank.fit(both, calibration=SimpleNamespace(**table(FAN, range(8, 13), strength=0.5)))


@pytest.fixture(scope="module")
def folder(model, extractor, bank, tmp_path_factory):
    folder = tmp_path_factory.mktemp("run")
    for part in (model, extractor, bank):
        part.save_pretrained(folder)
    return folder


def load(folder) -> AnomalousSoundDetectionPipeline:
    return AnomalousSoundDetectionPipeline(
        AsdModel.from_pretrained(folder),
        feature_extractor=AsdFeatureExtractor.from_pretrained(folder),
        device="cpu",
    )


@pytest.fixture(scope="module")
def pipe(folder) -> AnomalousSoundDetectionPipeline:
    """Return a pipeline that no test may change."""
    return load(folder)


@pytest.fixture
def wav(tmp_path):
    """Return a function that writes a recording and returns its path."""

    def write(samples, *, name="clip.wav", sampling_rate=RATE):
        soundfile.write(tmp_path / name, samples, sampling_rate, subtype="PCM_16")
        return tmp_path / name

    return write


def test_a_verdict_is_the_banks_on_the_models_embedding(pipe, embed, bank, wav) -> None:
    embedding = embed([50], strength=0.5)  # the guard's
    decision = bank.decide(bank.anomaly_score(embedding, FAN).item(), FAN)
    result = pipe(str(wav(recording(50))), machine="fan")
    assert result["anomaly_score"] == pytest.approx(decision.anomaly_score, **SAME)
    assert {key: result[key] for key in ("threshold", "anomalous", "p_value")} == {
        key: getattr(decision, key) for key in ("threshold", "anomalous", "p_value")
    }
    assert [r["file_name"] for r in result["nearest_references"]] == [
        r["file_name"] for r in bank.nearest_references(embedding, FAN)[0]
    ]
    assert result["domain_p_values"] == {
        domain: {"p_value": told.p_value, "resolution": told.resolution}
        for domain, told in bank.domain_p_values(result["anomaly_score"], FAN).items()
    }
    assert result["machine"] == FAN


def test_a_result_is_plain_python(pipe, wav) -> None:
    result = pipe(wav(recording(50)), machine="fan")
    assert json.loads(json.dumps(result)) == result
    types = {key: type(value) for key, value in result.items()}
    assert types == {
        "anomaly_score": float,
        "threshold": float,
        "anomalous": bool,
        "p_value": float,
        "domain_p_values": dict,
        "nearest_references": list,
        "machine": str,
    }


def test_a_strange_sound_is_anomalous_and_a_reference_is_not(pipe, wav) -> None:
    known = pipe(wav(recording(0)), machine=FAN)
    clicks = np.zeros((6_000, 2), dtype=np.int16)
    clicks[::500] = 20_000
    strange = pipe(wav(clicks), machine=FAN)
    assert known["anomaly_score"] == pytest.approx(0, abs=1e-4)
    assert strange["anomalous"] is True
    assert strange["p_value"] == pytest.approx(1 / 6)
    assert known["anomalous"] is False


def test_a_machine_without_calibration_gets_no_verdict(pipe, wav) -> None:
    result = pipe(wav(recording(50)), machine="pump")
    assert result["anomaly_score"] > 0
    assert [result[key] for key in ("threshold", "anomalous", "p_value")] == [None] * 3
    assert result["domain_p_values"] == {}


def test_every_way_to_give_one_clip_gives_one_result(pipe, wav) -> None:
    samples = recording(50)
    path, near, far = wav(samples), *samples.T
    near_path, far_path = wav(near, name="near.flac"), wav(far, name="far.flac")
    cells = {
        "near": {"bytes": near_path.read_bytes(), "path": "near/clip.flac"},
        "far": {"bytes": far_path.read_bytes(), "path": "far/clip.flac"},
    }
    whole = {"year": 2026, "machine_type": "fan", "section": 0, "condition": 1, "domain": -1}
    expected = pipe(path, machine="fan")
    floats = (samples / 32768).astype(np.float32).T
    for result in (
        pipe(str(path), machine=FAN),
        pipe({"bytes": path.read_bytes(), "path": None}, machine=FAN),
        pipe(near=near, far=far, sampling_rate=RATE, machine="fan"),
        pipe(near=floats[0], far=floats[1], sampling_rate=RATE, machine="fan"),
        pipe(near=torch.tensor(near), far=torch.tensor(far), sampling_rate=RATE, machine="fan"),
        pipe({"near": near, "far": far, "sampling_rate": RATE, "machine": "fan"}),
        pipe({"near": near, "far": far} | whole, sampling_rate=RATE),
        pipe({"near": near_path, "far": str(far_path), "machine": "fan"}),
        pipe(cells | whole),
        pipe({"near": {"array": near, "sampling_rate": RATE}, "far": cells["far"]} | whole),
    ):
        assert result == expected


def test_a_mono_clip_is_near_alone(pipe, wav) -> None:
    near = recording(50)[:, 0]
    expected = pipe(near=near, sampling_rate=RATE, machine="fan")
    assert pipe(wav(near), machine="fan") == expected
    assert pipe(near, sampling_rate=RATE, machine="fan") == expected
    assert pipe({"near": near, "far": None}, sampling_rate=RATE, machine="fan") == expected
    assert pipe(wav(recording(50)), machine="fan") != expected


def test_the_guard_of_a_machine_holds_the_front_end_back(folder, bank, embed, wav) -> None:
    path, pipe = wav(recording(50)), load(folder)
    for strength in (0.0, 1.0):
        pipe.reference_bank.guard[FAN] = strength
        expected = bank.anomaly_score(embed([50], strength=strength), FAN).item()
        assert pipe(path, machine=FAN)["anomaly_score"] == pytest.approx(expected, **SAME)


def test_neither_batch_nor_stream_changes_a_result(pipe) -> None:
    rows = [
        {"near": near, "far": far, "sampling_rate": RATE, "machine": machine}
        for seed, num_samples, machine in [
            (50, 6_000, "fan"),
            (51, 9_001, "pump"),
            (52, 4_000, "fan"),
            (53, 6_000, "fan"),
            (54, 5_555, PUMP),
        ]
        for near, far in [recording(seed, num_samples).T]
    ]
    rows[3]["far"] = None
    alone = [pipe(row) for row in rows]
    assert len({result["anomaly_score"] for result in alone}) == 5
    together = pipe(rows, batch_size=2)  # the last batch holds one
    assert isinstance(together, list)
    stream = pipe((row for row in rows), batch_size=3)
    assert isinstance(stream, Iterator)
    for results in (together, list(stream), list(pipe(tuple(rows))), pipe(rows, batch_size=5)):
        for result, expected in zip(results, alone, strict=True):
            assert result.pop("anomaly_score") == pytest.approx(expected["anomaly_score"], **SAME)
            assert result["machine"] == expected["machine"]
            assert result["anomalous"] == expected["anomalous"]
            assert [r["file_name"] for r in result["nearest_references"]] == [
                r["file_name"] for r in expected["nearest_references"]
            ]


def test_a_datasets_audio_column_is_read_as_stored(pipe, wav) -> None:
    paths = [wav(recording(seed)[:, 0], name=f"{seed}.wav") for seed in (50, 51, 52)]
    cells = [{"bytes": path.read_bytes(), "path": path.name} for path in paths]
    columns = {"near": cells, "machine_type": ["fan"] * 3, "file_name": ["a", "b", "c"]}
    clips = datasets.Dataset.from_dict(columns).cast_column("near", datasets.Audio(decode=False))
    expected = [pipe(path, machine="fan") for path in paths]
    assert list(pipe(clips)) == expected
    assert list(pipe(clips.to_iterable_dataset())) == expected


def test_no_clips_give_no_results(pipe) -> None:
    assert pipe([], machine="fan") == []


def test_machine_as_a_keyword_is_meant_for_every_row(pipe) -> None:
    near = recording(50)[:, 0]
    rows = [{"near": near, "machine": PUMP}, {"near": near, "machine_type": "unheard of"}]
    results = pipe(rows, machine="fan", sampling_rate=RATE)
    assert [result["machine"] for result in results] == [FAN, FAN]


def test_as_many_references_are_named_as_asked_for(pipe, wav) -> None:
    path = wav(recording(50))
    assert len(pipe(path, machine="fan")["nearest_references"]) == 3
    assert len(pipe(path, machine="fan", num_nearest=5)["nearest_references"]) == 5


@pytest.mark.parametrize(
    ("clip", "options", "message"),
    [
        (None, {}, "Give either inputs"),
        ("clip.wav", {"near": np.zeros(6_000)}, "Give either inputs"),
        ("clip.wav", {"far": np.zeros(6_000)}, "far= goes with near="),
        ({"far": np.zeros(6_000)}, {}, r"needs near, but this one has \['far'\]"),
        ({"near": np.zeros(6_000), "file_name": "a.wav"}, {}, r"a.wav \(near\) has no sampling"),
        (
            {"near": np.zeros(6_000), "file_name": "a.wav"},
            {"sampling_rate": 44_100},
            r"a.wav \(near\) is sampled at 44100 Hz, but this model expects 16000 Hz. Resample",
        ),
        (
            {"near": np.zeros((6_000, 2)), "file_name": "a.wav"},
            {"sampling_rate": RATE},
            r"a.wav \(near\) has shape \(6000, 2\)",
        ),
        (
            {"near": np.zeros(6_000), "far": np.zeros(5_000), "file_name": "a.wav"},
            {"sampling_rate": RATE},
            "a.wav has 6000 near samples, but 5000 far ones",
        ),
    ],
)
def test_a_clip_that_cannot_be_used_is_answered_with_its_name_and_what_to_do(
    pipe, clip, options, message
) -> None:
    with pytest.raises(ValueError, match=message):
        pipe(clip, machine="fan", **options)


def test_a_file_that_cannot_be_used_is_answered_with_its_name(pipe, wav, tmp_path) -> None:
    with pytest.raises(ValueError, match=r"music.wav \(near\) is sampled at 44100 Hz"):
        pipe(wav(recording(50), name="music.wav", sampling_rate=44_100), machine="fan")
    with pytest.raises(ValueError, match=r"three.wav has 3 channels in near"):
        pipe(wav(np.zeros((6_000, 3), dtype=np.int16), name="three.wav"), machine="fan")
    stereo, mono = wav(recording(50), name="stereo.wav"), wav(recording(50)[:, 1], name="mono.wav")
    with pytest.raises(ValueError, match=r"stereo.wav has 2 channels in near"):
        pipe({"near": stereo, "far": mono}, machine="fan")
    with pytest.raises(ValueError, match=r"mono.wav has 2 channels in far"):
        pipe({"near": mono, "far": stereo}, machine="fan")
    (tmp_path / "text.wav").write_text("no sound")
    with pytest.raises(ValueError, match=r"text.wav \(near\) cannot be decoded"):
        pipe(tmp_path / "text.wav", machine="fan")
    with pytest.raises(FileNotFoundError, match=r"gone.wav"):
        pipe("gone.wav", machine="fan")


def test_an_unknown_or_unnamed_machine_is_the_banks_error(pipe, wav) -> None:
    path = wav(recording(50))
    with pytest.raises(KeyError, match="no machine 'slider'"):
        pipe(path, machine="slider")
    with pytest.raises(KeyError, match="Which machine"):
        pipe(path)


def test_a_map_is_why_the_score_is_what_it_is_the_same_in_any_batch(pipe) -> None:
    rows = [
        {"near": near, "far": far, "sampling_rate": RATE, "machine": "fan"}
        for seed, num_samples in [(50, 6_000), (51, 9_001)]
        for near, far in [recording(seed, num_samples).T]
    ]
    alone = [pipe(row, map=True) for row in rows]
    for result, row in zip(alone, rows, strict=True):
        assert json.loads(json.dumps(result)) == result
        drawn, plain = result["map"], pipe(row)
        assert result == plain | {"map": drawn}
        assert "map" not in plain
        assert drawn["method"] == "additive"
        assert np.sum(drawn["values"]) == pytest.approx(result["anomaly_score"], rel=1e-3)
        shape = len(drawn["time_edges_seconds"]) - 1, len(drawn["band_edges_hz"]) - 1
        assert np.shape(drawn["values"]) == shape
    together = pipe(rows, batch_size=2, map=True)
    assert [result["map"] for result in together] == [result["map"] for result in alone]


def test_a_map_explains_the_cleaned_sound(folder, wav) -> None:
    path, pipe = wav(recording(50)), load(folder)
    values = []
    for strength in (0.0, 1.0):
        pipe.reference_bank.guard[FAN] = strength
        result = pipe(path, machine=FAN, map=True)
        assert np.sum(result["map"]["values"]) == pytest.approx(result["anomaly_score"], rel=1e-3)
        values.append(result["map"]["values"])
    assert values[0] != values[1]


def test_a_model_without_a_map_says_so(folder, wav) -> None:
    pipe = load(folder)
    pipe.model.anomaly_map = DetectorPreTrainedModel.anomaly_map.__get__(pipe.model)
    with pytest.raises(ValueError, match="AsdModel draws no anomaly map"):
        pipe(wav(recording(50)), machine=FAN, map=True)


def test_a_misspelt_option_is_refused(pipe, wav) -> None:
    with pytest.raises(TypeError, match="machin"):
        pipe(wav(recording(50)), machin="fan")


def test_a_checkpoint_without_bank_says_so_and_takes_one(model, bank, wav, tmp_path) -> None:
    for part in (model, AsdFeatureExtractor()):
        part.save_pretrained(tmp_path / "run")
    bare = load(tmp_path / "run")
    with pytest.raises(FileNotFoundError, match=r"run has no reference bank. Fit a ReferenceBank"):
        bare(wav(recording(50)), machine="fan")
    bare.reference_bank = bank
    assert bare(wav(recording(50)), machine="fan")["machine"] == FAN


def test_a_bank_of_another_encoder_is_refused(pipe, bank, wav) -> None:
    other = copy.deepcopy(pipe.model)
    for parameter in other.parameters():
        torch.nn.init.normal_(parameter, generator=torch.Generator().manual_seed(3))
    stranger = AnomalousSoundDetectionPipeline(
        other, feature_extractor=pipe.feature_extractor, device="cpu"
    )
    with pytest.raises(ValueError, match="another encoder"):
        stranger(wav(recording(50)), machine="fan")  # with the bank in its folder
    with pytest.raises(ValueError, match="another encoder"):
        stranger.reference_bank = bank


def test_a_model_in_training_mode_is_put_into_evaluation_mode(model, extractor) -> None:
    training = copy.deepcopy(model).train()
    AnomalousSoundDetectionPipeline(training, feature_extractor=extractor, device="cpu")
    assert not training.training


def test_a_saved_pipeline_with_an_enrolled_machine_comes_back_whole(folder, wav, tmp_path) -> None:
    table = SimpleNamespace(
        embedding=np.random.default_rng(0).standard_normal((4, 2, 1, 32)).astype(np.float32),
        file_names=list("abcd"),
        machines=["?"] * 4,
        domains=[None] * 4,
        conditions=[None] * 4,
    )
    pipe = load(folder)
    pipe.reference_bank.enroll("press", table, frozen_encoder=True)
    pipe.save_pretrained(tmp_path / "saved")
    again, path = load(tmp_path / "saved"), wav(recording(50))
    for machine in ("fan", "pump", "press"):
        assert again(path, machine=machine) == pipe(path, machine=machine)

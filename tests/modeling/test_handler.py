"""The inference endpoint's handler, loaded out of a folder as an endpoint loads it."""

import base64
import importlib.util
import io
import json
from pathlib import Path
from types import ModuleType

import numpy as np
import pytest
import soundfile

from modeling import AsdFeatureExtractor, AsdForProxyClassification, ReferenceBank

OLD_RUN = Path(__file__).parents[1] / "fixtures" / "run_format_1"
RATE, FAN = 16_000, "2026/fanSim/00"


def wav(num_samples: int = 8_000, *, channels: int = 2, kind: str = "WAV") -> bytes:
    rng = np.random.default_rng(0)
    buffer = io.BytesIO()
    samples = 0.1 * rng.standard_normal((num_samples, channels))
    soundfile.write(buffer, samples, RATE, format=kind, subtype="PCM_16")
    return buffer.getvalue()


@pytest.fixture(scope="module")
def module(tmp_path_factory: pytest.TempPathFactory) -> ModuleType:
    """Return the handler's module, which lies in a checkpoint's folder."""
    folder = tmp_path_factory.mktemp("endpoint")
    for cls in (AsdForProxyClassification, AsdFeatureExtractor, ReferenceBank):
        cls.from_pretrained(OLD_RUN).save_pretrained(folder)
    spec = importlib.util.spec_from_file_location("handler", folder / "handler.py")
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


@pytest.fixture(scope="module")
def handler(module: ModuleType):
    return module.EndpointHandler(str(Path(module.__file__).parent))


def test_every_form_of_a_request_gets_the_pipelines_answer(handler) -> None:
    recording = wav()
    due = handler.pipe({"bytes": recording}, machine="fanSim")
    encoded = base64.b64encode(recording).decode()
    samples, _ = soundfile.read(io.BytesIO(recording), dtype="int16")
    apart = {}
    for name, channel in zip(("near", "far"), samples.T, strict=True):
        buffer = io.BytesIO()
        soundfile.write(buffer, channel, RATE, format="FLAC", subtype="PCM_16")
        apart[name] = base64.b64encode(buffer.getvalue()).decode()
    for inputs in (recording, encoded, f"data:audio/wav;base64,{encoded}", apart):
        answer = handler({"inputs": inputs, "parameters": {"machine": "fanSim"}})
        assert answer == due
        assert json.loads(json.dumps(answer)) == answer
    few = handler({"inputs": recording, "parameters": {"machine": FAN, "num_nearest": 1}})
    assert len(few["nearest_references"]) == 1


@pytest.mark.parametrize(
    ("inputs", "message"),
    [
        ("https://example.org/clip.wav", "addresses and paths are not fetched"),
        ("/etc/hostname", "cannot be decoded|not fetched"),
        ("../clip.wav", "not fetched"),
        ("bm8gc291bmQ=", "cannot be decoded"),
        (b"no sound", "cannot be decoded"),
        (b"", "cannot be decoded"),
        (None, 'needs "inputs"'),
        (3, "must be bytes or base64, got int"),
        ([0.1, 0.2], "must be bytes or base64, got list"),
        ({"far": "bm8="}, "must have near"),
        ({"near": wav(channels=1), "url": "x"}, "may have near and far"),
        ({"near": wav(channels=1), "far": wav(9_000, channels=1)}, "near samples, but 9000 far"),
        (wav(channels=3), "3 channels"),
        (wav(100), "100 samples"),
    ],
)
def test_what_cannot_be_answered_is_said_to_the_one_who_asked(handler, inputs, message) -> None:
    with pytest.raises(ValueError, match=message) as told:
        handler({"inputs": inputs, "parameters": {"machine": FAN}})
    assert str(OLD_RUN.parents[2]) not in str(told.value)


@pytest.mark.parametrize(
    ("parameters", "message"),
    [
        ({}, "Which machine is it"),
        ({"machine": "toaster"}, "has no machine 'toaster'"),
        ({"machine": 3}, "must be a name"),
        ({"machine": FAN, "num_nearest": 51}, "must be 1 to 50"),
        ({"machine": FAN, "num_nearest": True}, "must be 1 to 50"),
        ({"machine": FAN, "sampling_rate": 8_000}, "must be a mapping of"),
        ("fan", "must be a mapping of"),
    ],
)
def test_parameters_are_checked(handler, parameters, message) -> None:
    with pytest.raises(ValueError, match=message):
        handler({"inputs": wav(), "parameters": parameters})


def test_a_request_is_bounded_before_it_is_decoded(module, handler, monkeypatch) -> None:
    long = wav(RATE * 121, channels=1, kind="FLAC")
    with pytest.raises(ValueError, match="lasts 121 s, and 120 s is the most"):
        handler({"inputs": long, "parameters": {"machine": FAN}})
    monkeypatch.setattr(module, "MAX_BYTES", 2**20)
    for inputs in (bytes(2**20 + 1), "A" * (2**20 * 4 // 3 + 5)):
        with pytest.raises(ValueError, match="larger than 1 MiB"):
            handler({"inputs": inputs})


def test_a_checkpoint_without_a_bank_is_refused_at_the_start(module, tmp_path: Path) -> None:
    AsdForProxyClassification.from_pretrained(OLD_RUN).base_model.save_pretrained(tmp_path)
    AsdFeatureExtractor.from_pretrained(OLD_RUN).save_pretrained(tmp_path)
    (tmp_path / "reference_bank.json").unlink(missing_ok=True)
    with pytest.raises(FileNotFoundError, match="has no reference bank"):
        module.EndpointHandler(str(tmp_path))

"""The whole way to the Hub and back, by fresh processes that have only what a user has."""

import sys
from pathlib import Path

import pytest

from benchmarks import hub
from benchmarks.hub import requirement_closure


def test_the_users_environment_is_what_transformers_torch_and_soundfile_require() -> None:
    names = {dist.metadata["Name"].lower() for dist in requirement_closure(hub.NEEDED)}
    assert {"transformers", "torch", "soundfile", "numpy", "huggingface_hub"} <= {
        name.replace("-", "_") for name in names
    }
    assert not names & {"nearfar", "datasets", "accelerate", "peft", "scipy", "scikit-learn"}


@pytest.mark.slow
def test_a_quickstart_goes_to_the_hub_and_comes_back(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(sys, "argv", ["hub.py", "--output_dir", str(tmp_path)])
    hub.main()
    lines = capsys.readouterr().out.splitlines()
    [offline] = [line for line in lines if line.startswith("load both without a network")]
    assert offline.endswith(" 0 requests")
    enrolled, streamed, on_stream, trained = lines[-4:]
    assert "enrolled local/my_pump/00" in enrolled
    assert ": 20 train, 12 test clips, their samples those of the wav files" in streamed
    assert on_stream.startswith(
        "trained on a stream of tester/machines, of which nothing stays on disk, and from the "
        "published folder: loss "
    )
    assert trained.startswith("trained from tester/machines and from the folder: loss ")
    [published] = [line for line in lines if line.startswith("publish the recordings")]
    assert not published.endswith(" 0 requests")

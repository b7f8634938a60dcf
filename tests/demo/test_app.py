"""The API: actions by name, users apart, errors in words."""

import json
import socket
import zipfile
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
import soundfile

pytest.importorskip("gradio_client", reason="gradio is missing: pip install -e '.[app]'")

import gradio as gr
import httpx
from gradio_client import Client, handle_file
from gradio_client.exceptions import AppError

from demo.detector import Detector
from demo.recordings import read_recording
from tests.demo.conftest import Served


@pytest.fixture(scope="module")
def client(served: Served) -> Client:
    return Client(served.url, verbose=False)


def test_every_action_has_a_name_a_description_and_named_parameters(client: Client) -> None:
    endpoints = client.view_api(return_format="dict")["named_endpoints"]
    names = {"/score": 3, "/machines": 0, "/enroll": 2, "/compare": 2, "/card": 0}
    assert set(endpoints) == set(names)
    for name, count in names.items():
        assert endpoints[name]["description"]
        assert len(endpoints[name]["parameters"]) == count
    found = [parameter["parameter_name"] for parameter in endpoints["/score"]["parameters"]]
    assert found == ["machine", "near", "far"]


def test_a_score_by_name_is_the_detectors(client: Client, served: Served) -> None:
    example = served.actions.sounds.examples()[3]
    found = client.predict("pumpSim", handle_file(example.path), None, api_name="/score")
    verdict, _ = served.actions.detector.judge(read_recording(example.path), example.machine)
    assert found["machine"] == "2026/pumpSim/00"
    assert found["anomaly_score"] == pytest.approx(verdict.anomaly_score, rel=1e-5)
    json.dumps(found, allow_nan=False)
    machines = client.predict(api_name="/machines")
    assert [row["machine"] for row in machines] == served.actions.detector.bank.machines
    assert "Anomalous sound detector" in client.predict(api_name="/card")


def test_a_clients_machine_is_its_own(
    client: Client, served: Served, hum: Callable[..., np.ndarray], tmp_path: Path
) -> None:
    soundfile.write(tmp_path / "normal.wav", hum(70), 16_000)
    normal = handle_file(tmp_path / "normal.wav")
    answer, archive = client.predict("press", [normal], api_name="/enroll")
    assert answer["machine"] == "local/press/00"
    assert answer["num_references"] == 7
    assert zipfile.is_zipfile(archive)
    for called in ("local/press/00", "press"):
        found = client.predict(called, normal, None, api_name="/score")
        assert (found["machine"], len(found["windows"])) == ("local/press/00", 7)
    other = Client(served.url, verbose=False)
    with pytest.raises(AppError, match="no machine 'local/press/00'"):
        other.predict("local/press/00", normal, None, api_name="/score")


def test_a_zip_becomes_metrics_and_a_csv(client: Client, clips_zip: Path) -> None:
    metrics, csv = client.predict([handle_file(clips_zip)], None, api_name="/compare")
    assert set(metrics["machines"]) == {"2026/fanSim/00", "2026/gearboxSim/00", "2026/pumpSim/00"}
    assert len(Path(csv).read_text().splitlines()) == 10


def test_errors_come_in_words_and_the_server_lives_on(
    client: Client, served: Served, bad_files: dict[str, Path]
) -> None:
    near = handle_file(bad_files["near"])
    for machine, words in (
        ("crane", "no machine 'crane'"),
        ("2026/crane/00", "It holds:"),
        (None, "Which machine is it?"),
        (["fanSim"], "enrol your own"),
    ):
        with pytest.raises(AppError, match=words):
            client.predict(machine, near, None, api_name="/score")
    with pytest.raises(AppError, match="not a sound"):
        client.predict("fanSim", handle_file(bad_files["text"]), None, api_name="/score")
    with pytest.raises(AppError, match="is not a path below"):
        client.predict([handle_file(bad_files["outside"])], None, api_name="/compare")
    assert client.predict("fanSim", near, None, api_name="/score")["anomaly_score"] > 0


def test_an_upload_beyond_the_limit_is_cut_off(served: Served) -> None:
    answer = httpx.post(f"{served.url}gradio_api/upload", files={"files": bytes(101 << 20)})
    assert answer.status_code == 413


def test_no_file_of_the_server_can_be_had_by_its_path(served: Served, client: Client) -> None:
    for path in ("/etc/passwd", str(Path(__file__)), f"{served.actions.shelf.folder}/../x"):
        assert httpx.get(f"{served.url}gradio_api/file={path}").status_code in (403, 404)
    stolen = {"path": "/etc/passwd", "meta": {"_type": "gradio.FileData"}}
    with pytest.raises(AppError):
        client.predict("fanSim", stolen, None, api_name="/score")


def test_a_start_that_cannot_be_ends_in_one_line(monkeypatch: pytest.MonkeyPatch) -> None:
    import app

    with gr.Blocks() as page:
        gr.HTML("")
    with socket.socket() as taken:
        taken.bind(("127.0.0.1", 0))
        taken.listen()
        port = taken.getsockname()[1]
        with pytest.raises(OSError, match=rf"Port {port} is taken on 127\.0\.0\.1\. Give another"):
            app._launch(page, app.AppArguments(port=port), {"quiet": True})

    def unreachable(repo_id: str) -> str:
        raise httpx.ConnectError(f"No way to\nthe Hub for {repo_id}.")

    monkeypatch.setattr("demo.detector.snapshot_download", unreachable)
    with pytest.raises(FileNotFoundError, match=r"runs/none is no folder here.*No way to the Hub"):
        Detector.load("runs/none")

"""The registry equals what was published, and a download ends right however the server behaves."""

import errno
import hashlib
import http.server
import io
import json
import os
import re
import signal
import subprocess
import sys
import threading
import time
import zipfile
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path

import numpy as np
import pytest

from data_scripts import archives, dcase
from data_scripts.archives import DownloadError, Transfer
from data_scripts.dcase import EDITIONS, download_dcase, list_archives

# ---- registry

MACHINES_2020 = "fan pump slider valve ToyCar ToyConveyor"
MACHINES_2021 = "fan gearbox pump slider ToyCar ToyTrain valve"
MACHINES_2022 = "bearing fan gearbox slider ToyCar ToyTrain valve"
PUBLISHED = {
    2020: (MACHINES_2020, MACHINES_2020, (3678171, 3727685, 3841772)),
    2021: (MACHINES_2021, MACHINES_2021, (4562016, 4660992, 4884786)),
    2022: (MACHINES_2022, MACHINES_2022, (6355122, 6462969, 6586456)),
    2023: (
        MACHINES_2022,
        "bandsaw grinder shaker ToyDrone ToyNscale ToyTank Vacuum",
        (7882613, 7830345, 7860847),
    ),
    2024: (
        MACHINES_2022,
        "3DPrinter AirCompressor BrushlessMotor HairDryer HoveringDrone RoboticArm Scanner "
        "ToothBrush ToyCircuit",
        (10902294, 11259435, 11363076),
    ),
    2025: (
        MACHINES_2022,
        "AutoTrash HomeCamera ToyPet ToyRCCar BandSealer CoffeeGrinder Polisher ScrewFeeder",
        (15097779, 15392814, 15519362),
    ),
    2026: (
        "ToyCar ToyCarEmu bearingEmu fan gearboxEmu sliderEmu valveEmu",
        "BlowerDustCollector Sander SewingMachine ToothBrush ToyDrone",
        (19336329, 20151556, 20437238),
    ),
}


def test_the_registry_holds_the_published_years_and_no_other() -> None:
    assert set(EDITIONS) == set(PUBLISHED)


@pytest.mark.parametrize("year", PUBLISHED)
def test_machines_and_records_are_the_published_ones(year: int) -> None:
    dev, evaluation, records = PUBLISHED[year]
    listed = [list_archives(year, subset) for subset in ("dev", "eval_train", "eval_test")]
    assert [" ".join(a.machine_type for a in part) for part in listed] == [
        dev,
        evaluation,
        evaluation,
    ]
    assert [{a.record_id for a in part} for part in listed] == [{record} for record in records]


@pytest.mark.parametrize(
    ("year", "subset", "machine_type", "published"),
    [
        (2020, "dev", "fan", "3678171 dev_data_fan"),
        (2020, "eval_train", "fan", "3727685 eval_data_train_fan"),
        (2020, "eval_test", "fan", "3841772 eval_data_test_fan"),
        (2021, "dev", "fan", "4562016 dev_data_fan"),
        (2021, "eval_test", "pump", "4884786 eval_data_pump_test"),
        (2022, "dev", "bearing", "6355122 dev_bearing"),
        (2024, "eval_train", "3DPrinter", "11259435 eval_data_3DPrinter_train_r2"),
        (2024, "eval_train", "Scanner", "11259435 eval_data_Scanner_train"),
        (2024, "eval_test", "3DPrinter", "11363076 eval_data_3DPrinter_test"),
        (2024, "eval_train", "RoboticArm", "11259435 eval_data_RoboticArm_train_r2"),
        (2024, "eval_test", "RoboticArm", "11363076 eval_data_RoboticArm_test"),
        (2026, "dev", "ToyCar", "19336329 dev_ToyCar_r2"),
        (2026, "dev", "ToyCarEmu", "19336329 dev_ToyCarEmu"),
        (2026, "eval_test", "Sander", "20437238 eval_data_Sander_test"),
    ],
)
def test_each_year_names_its_archives_in_its_own_way(
    year: int, subset: str, machine_type: str, published: str
) -> None:
    (archive,) = list_archives(year, subset, machine_types=[machine_type])
    record_id, name = published.split()
    assert archive.url_path == f"/records/{record_id}/files/{name}.zip"


def test_the_development_set_of_2026_has_its_published_size() -> None:
    sizes = [archive.size for archive in list_archives(2026, "dev")]
    assert sum(sizes) == 4_800_711_994  # "4.80 GB"


def test_every_archive_of_2026_has_its_own_md5() -> None:
    listed = [a for subset in dcase.SUBSETS for a in list_archives(2026, subset)]
    assert len(listed) == 17
    assert len({archive.md5 for archive in listed}) == 17
    assert all(re.fullmatch("[0-9a-f]{32}", archive.md5) for archive in listed)
    assert len(dcase._PUBLISHED) == 17  # no entry that no archive uses


def test_what_does_not_exist_is_answered_with_what_does() -> None:
    with pytest.raises(ValueError, match=r"no year 2019\. Choose from: '2020'.*'2026'"):
        list_archives(2019, "dev")
    with pytest.raises(ValueError, match=r"no subset 'evaluation'.*'eval_train'"):
        list_archives(2026, "evaluation")
    with pytest.raises(ValueError, match=r"no machine 'pump'.*'ToyCar', 'ToyCarEmu'"):
        list_archives(2026, "dev", machine_types=["fan", "pump"])


# ---- a loopback server


@dataclass
class Answer:
    """What the server did with one request."""

    path: str
    range: str | None
    status: int = 0
    body_bytes: int = 0


@dataclass
class Server:
    """Files by path, and per path the faults of the coming requests, one each."""

    url: str = ""
    files: dict[str, bytes] = field(default_factory=dict)
    faults: dict[str, list[str]] = field(default_factory=dict)
    answers: list[Answer] = field(default_factory=list)
    released: threading.Event = field(default_factory=threading.Event)

    def publish(self, subset: str, machine: str, content: bytes, *, year: int = 2023) -> str:
        """Serve an archive, with its MD5 in the record, and return its path."""
        (archive,) = list_archives(year, subset, machine_types=[machine])
        self.files[archive.url_path] = content
        record = f"/api/records/{archive.record_id}"
        entries = json.loads(self.files.get(record, b'{"files": []}'))["files"]
        md5 = hashlib.md5(content).hexdigest()
        entry = {"key": archive.file_name, "size": len(content), "checksum": f"md5:{md5}"}
        self.files[record] = json.dumps({"files": [*entries, entry]}).encode()
        return archive.url_path

    def of(self, path: str) -> list[Answer]:
        return [answer for answer in self.answers if answer.path == path]


class Handler(http.server.BaseHTTPRequestHandler):
    protocol_version = "HTTP/1.1"
    site: Server

    def log_message(self, format: str, *args: object) -> None:
        pass

    def do_GET(self) -> None:
        answer = Answer(self.path, self.headers.get("Range"))
        self.site.answers.append(answer)
        faults = self.site.faults.get(self.path, [])
        fault = faults.pop(0) if faults else ""
        content = self.site.files.get(self.path)
        if content is None or fault.isdigit():
            answer.status = int(fault or 404)
            self.send_response(answer.status)
            if answer.status == 429:
                self.send_header("Retry-After", "7")
            self.send_header("Content-Length", "0")
            self.end_headers()
            return
        start = 0
        if answer.range and fault != "ignore_range":
            start = int(re.fullmatch(r"bytes=(\d+)-", answer.range)[1])
        total = len(content)
        if start >= total:
            answer.status = 416
            self.send_response(416)
            self.send_header("Content-Range", f"bytes */{total}")
            self.send_header("Content-Length", "0")
            self.end_headers()
            return
        body = content[start:]
        if fault == "wrong_byte":
            body = body[:-1000] + bytes([body[-1000] ^ 1]) + body[-999:]
        answer.status = 206 if answer.range and fault != "ignore_range" else 200
        self.send_response(answer.status)
        self.send_header("Content-Length", str(len(body)))
        if answer.status == 206:
            self.send_header("Content-Range", f"bytes {start}-{total - 1}/{total}")
        self.end_headers()
        if fault in ("break", "stall"):
            body = body[: len(body) // 2]
        pace = 0.1 if fault == "slow" else 0.0  # 0.3 MB/s
        try:
            for at in range(0, len(body), 1 << 15):
                self.wfile.write(body[at : at + (1 << 15)])
                answer.body_bytes += len(body[at : at + (1 << 15)])
                self.site.released.wait(pace) if pace else None
        except ConnectionError:
            return
        if fault == "stall":
            self.site.released.wait(20)
        if fault in ("break", "stall"):
            self.close_connection = True


@pytest.fixture
def server() -> Iterator[Server]:
    site = Server()
    handler = type("SiteHandler", (Handler,), {"site": site})
    httpd = http.server.ThreadingHTTPServer(("127.0.0.1", 0), handler)
    httpd.daemon_threads = True
    site.url = f"http://127.0.0.1:{httpd.server_port}"
    thread = threading.Thread(target=httpd.serve_forever, kwargs={"poll_interval": 0.02})
    thread.start()
    yield site
    site.released.set()
    httpd.shutdown()
    thread.join()
    httpd.server_close()


def archive_of(machine: str, *, split: str = "train", num_bytes: int = 600_000) -> bytes:
    """Return a zip of noise, which no compression shortens."""
    rng = np.random.default_rng(len(machine))
    buffer = io.BytesIO()
    with zipfile.ZipFile(buffer, "w", zipfile.ZIP_DEFLATED) as zipped:
        zipped.writestr(f"{machine}/", b"")
        for index in range(4):
            name = f"{machine}/{split}/section_00_{index:04d}.wav"
            zipped.writestr(name, rng.bytes(num_bytes // 4))
        if split == "train":
            zipped.writestr(f"{machine}/attributes_00.csv", "file_name,d1p,d1v\n")
    return buffer.getvalue()


def eager(**changes: object) -> Transfer:
    """Return a transfer that does not wait between attempts."""
    options = {"timeout_seconds": (5.0, 5.0), "max_attempts": 3, "backoff": lambda _: 0.0}
    return Transfer(**{**options, **changes})


def download(server: Server, output_dir: Path, **options: object) -> list[Path]:
    settings = {"year": 2023, "machine_types": ["fan"], "transfer": eager(), **options}
    return download_dcase(output_dir, base_url=server.url, **settings)


def tree(folder: Path) -> set[str]:
    return {path.relative_to(folder).as_posix() for path in folder.rglob("*") if path.is_file()}


def part_of(output_dir: Path, name: str = "dev_fan.zip") -> Path:
    (path,) = output_dir.glob(f"archives/*/{name}.part")
    return path


FAN_FILES = {f"train/section_00_{i:04d}.wav" for i in range(4)} | {"attributes_00.csv"}
FAN_IN_PLACE = FAN_FILES | {".dev_fan.zip.completed"}

# ---- download


def test_a_download_lays_the_official_tree_and_nothing_else(server: Server, tmp_path: Path) -> None:
    content = archive_of("fan")
    server.publish("dev", "fan", content)
    (folder,) = download(server, tmp_path)
    assert folder == tmp_path / "dev_data" / "raw" / "fan"
    assert tree(tmp_path) == {f"dev_data/raw/fan/{name}" for name in FAN_IN_PLACE}
    assert not (tmp_path / "archives").exists()
    with zipfile.ZipFile(io.BytesIO(content)) as zipped:
        for name in FAN_FILES:
            assert (folder / name).read_bytes() == zipped.read(f"fan/{name}")


def test_a_second_run_asks_the_server_for_nothing(server: Server, tmp_path: Path) -> None:
    server.publish("dev", "fan", archive_of("fan"))
    download(server, tmp_path)
    server.answers.clear()
    assert download(server, tmp_path) == [tmp_path / "dev_data/raw/fan"]
    assert server.answers == []


def test_a_machine_whose_folder_was_emptied_is_fetched_again(
    server: Server, tmp_path: Path
) -> None:
    path = server.publish("dev", "fan", archive_of("fan"))
    (folder,) = download(server, tmp_path)
    for file in (folder / "train").iterdir():
        file.unlink()
    (folder / "train").rmdir()
    download(server, tmp_path)
    assert len(server.of(path)) == 2
    assert tree(folder) == FAN_IN_PLACE


def test_a_kept_archive_is_not_fetched_again(server: Server, tmp_path: Path) -> None:
    content = archive_of("fan")
    path = server.publish("dev", "fan", content)
    (folder,) = download(server, tmp_path, keep_archives=True)
    (kept,) = tmp_path.glob("archives/*/*")
    assert kept.name == "dev_fan.zip"
    assert kept.read_bytes() == content
    (folder / ".dev_fan.zip.completed").unlink()
    download(server, tmp_path)
    assert len(server.of(path)) == 1


def test_a_broken_connection_is_resumed_where_it_broke(server: Server, tmp_path: Path) -> None:
    content = archive_of("fan")
    path = server.publish("dev", "fan", content)
    server.faults[path] = ["break", "break"]
    (folder,) = download(server, tmp_path)
    first, second, third = server.of(path)
    assert (first.status, second.status, third.status) == (200, 206, 206)
    assert first.range is None
    offsets = [int(re.fullmatch(r"bytes=(\d+)-", a.range)[1]) for a in (second, third)]
    # All but the chunk that was under way had been kept, and was not sent again.
    assert first.body_bytes - (1 << 16) <= offsets[0] <= first.body_bytes
    assert offsets[0] < offsets[1] < len(content)
    assert third.body_bytes == len(content) - offsets[1]
    assert tree(folder) == FAN_IN_PLACE


def test_breaking_off_while_something_new_arrives_does_not_use_up_the_attempts(
    server: Server, tmp_path: Path
) -> None:
    path = server.publish("dev", "fan", archive_of("fan", num_bytes=4_000_000))
    server.faults[path] = ["break"] * 5
    download(server, tmp_path, transfer=eager(max_attempts=2))
    assert [a.status for a in server.of(path)] == [200, 206, 206, 206, 206, 206]


def test_a_server_that_ignores_the_range_is_read_from_the_start(
    server: Server, tmp_path: Path
) -> None:
    path = server.publish("dev", "fan", archive_of("fan"))
    server.faults[path] = ["break", "ignore_range"]
    (folder,) = download(server, tmp_path)
    first, second = server.of(path)
    assert second.range is not None
    assert (first.status, second.status) == (200, 200)
    assert tree(folder) == FAN_IN_PLACE


def test_a_stalled_server_is_noticed_and_resumed(server: Server, tmp_path: Path) -> None:
    path = server.publish("dev", "fan", archive_of("fan"))
    server.faults[path] = ["stall"]
    started = time.monotonic()
    (folder,) = download(server, tmp_path, transfer=eager(timeout_seconds=(1.0, 0.5)))
    assert 0.5 <= time.monotonic() - started < 10  # the server itself would wait for 20
    _, second = server.of(path)
    assert second.range is not None
    assert second.status == 206
    assert tree(folder) == FAN_IN_PLACE


def test_a_server_that_keeps_breaking_off_is_given_up_and_resumed_next_time(
    server: Server, tmp_path: Path
) -> None:
    content = archive_of("fan")
    path = server.publish("dev", "fan", content)
    server.faults[path] = ["break", "503", "503", "503"]
    with pytest.raises(DownloadError, match=r"1 of 1 archives failed:\n  dev_fan\.zip: .*3 times"):
        download(server, tmp_path)
    assert len(server.of(path)) == 4
    kept = part_of(tmp_path).stat().st_size
    assert 0 < kept < len(content)
    assert not (tmp_path / "dev_data").exists()
    server.answers.clear()
    download(server, tmp_path)
    (resumed,) = server.of(path)
    assert resumed.range == f"bytes={kept}-"
    assert resumed.body_bytes == len(content) - kept


def test_pauses_grow_with_the_failures_in_a_row(server: Server, tmp_path: Path) -> None:
    path = server.publish("dev", "fan", archive_of("fan"))
    server.faults[path] = ["503", "502", "break", "503"]
    failures = []

    def note(in_a_row: int) -> float:
        failures.append(in_a_row)
        return 0.0

    download(server, tmp_path, transfer=eager(backoff=note))
    assert failures == [1, 2, 1, 1]  # what arrived in between starts the count again


class NotedWaits(threading.Event):
    """An event that nobody has to wait for."""

    def __init__(self) -> None:
        super().__init__()
        self.waits = []

    def wait(self, timeout: float | None = None) -> bool:
        self.waits.append(timeout)
        return self.is_set()


def test_a_server_that_names_a_pause_is_given_it(server: Server, tmp_path: Path) -> None:
    path = server.publish("dev", "fan", archive_of("fan"))
    server.faults[path] = ["503", "429"]
    stop = NotedWaits()
    download(server, tmp_path, transfer=eager(stop=stop, backoff=lambda failures: failures))
    assert stop.waits == [1, 7]


def test_a_wrong_byte_is_deleted_named_and_fetched_once_more(
    server: Server, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    path = server.publish("dev", "fan", archive_of("fan"))
    server.faults[path] = ["wrong_byte"]
    (folder,) = download(server, tmp_path)
    assert [a.range for a in server.of(path)] == [None, None]
    assert "dev_fan.zip has the MD5" in caplog.text
    assert "the download was deleted" in caplog.text
    assert tree(folder) == FAN_IN_PLACE


def test_a_byte_that_stays_wrong_ends_after_two_downloads(server: Server, tmp_path: Path) -> None:
    path = server.publish("dev", "fan", archive_of("fan"))
    server.faults[path] = ["wrong_byte"] * 9
    with pytest.raises(DownloadError, match=r"dev_fan\.zip has the MD5 .* was published; the dow"):
        download(server, tmp_path)
    assert len(server.of(path)) == 2
    assert tree(tmp_path) == set()


def test_the_registrys_own_md5_needs_no_record(
    server: Server, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    path = server.publish("dev", "fan", archive_of("fan"))
    right = hashlib.md5(server.files[path]).hexdigest()
    monkeypatch.setitem(dcase._PUBLISHED, (7882613, "dev_fan.zip"), (None, right))
    download(server, tmp_path / "right")
    assert server.of("/api/records/7882613") == []
    monkeypatch.setitem(dcase._PUBLISHED, (7882613, "dev_fan.zip"), (None, "0" * 32))
    with pytest.raises(DownloadError, match="but 00000000000000000000000000000000 was published"):
        download(server, tmp_path / "wrong")


def test_another_length_than_the_published_one_is_not_downloaded(
    server: Server, tmp_path: Path
) -> None:
    path = server.publish("dev", "fan", archive_of("fan"))
    server.files[path] += b"more"
    with pytest.raises(DownloadError, match=r"offers \d+ bytes, but \d+ were published"):
        download(server, tmp_path)
    assert tree(tmp_path) == set()


def test_without_any_checksum_the_archive_is_called_unverified(
    server: Server, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    path = server.publish("dev", "fan", archive_of("fan"))
    del server.files["/api/records/7882613"]
    server.faults[path] = ["break"]
    (folder,) = download(server, tmp_path)
    assert "dev_fan.zip is unverified beyond its zip CRCs" in caplog.text
    assert [a.status for a in server.of(path)] == [200, 206]  # it resumes all the same
    assert tree(folder) == FAN_IN_PLACE


def test_a_verified_archive_is_not_called_unverified(
    server: Server, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    server.publish("dev", "fan", archive_of("fan"))
    download(server, tmp_path)
    assert "unverified" not in caplog.text


@pytest.mark.parametrize("answer", [b"<html>", b"[]", b'{"files": [{"key": 1}]}', b'{"files": 3}'])
def test_a_record_that_makes_no_sense_counts_as_none(
    server: Server, tmp_path: Path, caplog: pytest.LogCaptureFixture, answer: bytes
) -> None:
    server.publish("dev", "fan", archive_of("fan"))
    server.files["/api/records/7882613"] = answer
    download(server, tmp_path)
    assert "unverified beyond its zip CRCs" in caplog.text


def test_an_unverified_archive_with_a_wrong_crc_is_deleted_and_fetched_once_more(
    server: Server, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    content = archive_of("fan")
    path = server.publish("dev", "fan", content)
    del server.files["/api/records/7882613"]
    damaged = bytearray(content)
    damaged[300_000] ^= 1
    server.files[path] = bytes(damaged)
    with pytest.raises(DownloadError, match="is a damaged zip"):
        download(server, tmp_path)
    assert len(server.of(path)) == 2
    assert tree(tmp_path) == set()
    server.files[path] = content
    (folder,) = download(server, tmp_path)
    assert tree(folder) == FAN_IN_PLACE


def test_a_part_that_is_whole_already_is_only_verified(server: Server, tmp_path: Path) -> None:
    content = archive_of("fan")
    path = server.publish("dev", "fan", content)
    part = tmp_path / "archives/7882613/dev_fan.zip.part"
    part.parent.mkdir(parents=True)
    part.write_bytes(content)
    (folder,) = download(server, tmp_path)
    assert server.of(path) == []
    assert tree(folder) == FAN_IN_PLACE


@pytest.mark.parametrize(("length", "statuses"), [(0, [416]), (500, [416, 200])])
def test_an_answer_416_ends_a_whole_part_and_restarts_one_that_is_too_long(
    server: Server, tmp_path: Path, length: int, statuses: list[int]
) -> None:
    content = archive_of("fan")
    path = server.publish("dev", "fan", content)
    del server.files["/api/records/7882613"]  # so that the length is not known beforehand
    part = tmp_path / "archives/7882613/dev_fan.zip.part"
    part.parent.mkdir(parents=True)
    part.write_bytes(content + bytes(length))
    (folder,) = download(server, tmp_path)
    assert [a.status for a in server.of(path)] == statuses
    assert tree(folder) == FAN_IN_PLACE


def test_one_missing_archive_fails_at_once_and_the_others_go_on(
    server: Server, tmp_path: Path
) -> None:
    for machine in ("fan", "valve"):
        server.publish("dev", machine, archive_of(machine))
    machines = ["fan", "slider", "valve"]
    with pytest.raises(
        DownloadError, match=r"^1 of 3 archives failed:\n  dev_slider\.zip: .* answered 404 "
    ):
        download(server, tmp_path, machine_types=machines, num_workers=2)
    assert len(server.of("/records/7882613/files/dev_slider.zip")) == 1
    assert {path.name for path in (tmp_path / "dev_data/raw").iterdir()} == {"fan", "valve"}


def test_train_and_test_of_an_evaluation_machine_meet_in_one_folder(
    server: Server, tmp_path: Path
) -> None:
    server.publish("eval_train", "bandsaw", archive_of("bandsaw"))
    server.publish("eval_test", "bandsaw", archive_of("bandsaw", split="test"))
    for subset in ("eval_train", "eval_test"):
        (folder,) = download(server, tmp_path, subset=subset, machine_types=["bandsaw"])
    assert folder == tmp_path / "eval_data/raw/bandsaw"
    assert {path.name for path in folder.iterdir() if not path.name.startswith(".")} == {
        "train",
        "test",
        "attributes_00.csv",
    }
    assert len(tree(folder)) == 4 + 4 + 1 + 2


def test_another_file_of_the_same_name_is_not_overwritten(server: Server, tmp_path: Path) -> None:
    server.publish("dev", "fan", archive_of("fan"))
    mine = tmp_path / "dev_data/raw/fan/train/section_00_0002.wav"
    mine.parent.mkdir(parents=True)
    mine.write_bytes(b"mine")
    with pytest.raises(DownloadError, match=r"section_00_0002\.wav is there already and differs"):
        download(server, tmp_path)
    assert tree(tmp_path / "dev_data") == {"raw/fan/train/section_00_0002.wav"}
    assert mine.read_bytes() == b"mine"


def test_two_years_do_not_share_a_folder(server: Server, tmp_path: Path) -> None:
    server.publish("dev", "fan", archive_of("fan"))
    download(server, tmp_path)
    with pytest.raises(ValueError, match=r"holds recordings of 2023.*others in 2025"):
        download(server, tmp_path, year=2025)


def test_an_archive_without_a_file_is_not_called_complete(server: Server, tmp_path: Path) -> None:
    buffer = io.BytesIO()
    with zipfile.ZipFile(buffer, "w") as zipped:
        zipped.writestr("fan/", b"")
    server.publish("dev", "fan", buffer.getvalue())
    with pytest.raises(DownloadError, match=r"dev_fan\.zip holds no file"):
        download(server, tmp_path)
    assert not (tmp_path / "dev_data").exists()


def test_an_archive_of_another_machine_is_refused(server: Server, tmp_path: Path) -> None:
    server.publish("dev", "fan", archive_of("valve"))
    with pytest.raises(DownloadError, match=r"dev_fan\.zip holds 'valve/.*should be in 'fan/'"):
        download(server, tmp_path)
    assert not (tmp_path / "dev_data").exists()


def test_a_folder_around_the_machine_and_system_junk_are_left_out(
    server: Server, tmp_path: Path
) -> None:
    buffer = io.BytesIO()
    with zipfile.ZipFile(buffer, "w") as zipped:
        zipped.writestr("dev_data/fan/train/section_00_0000.wav", b"clip")
        zipped.writestr("dev_data/fan/.DS_Store", b"junk")
        zipped.writestr("__MACOSX/fan/train/._section_00_0000.wav", b"junk")
    server.publish("dev", "fan", buffer.getvalue())
    (folder,) = download(server, tmp_path)
    assert tree(folder) == {"train/section_00_0000.wav", ".dev_fan.zip.completed"}


class FullDisk(io.FileIO):
    """A file on a disk with room for 200,000 bytes."""

    def write(self, data: bytes) -> int:
        if self.tell() + len(data) > 200_000:
            raise OSError(errno.ENOSPC, "No space left on device")
        return super().write(data)


def test_a_full_disk_is_named_and_the_part_is_resumed(
    server: Server, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    content = archive_of("fan")
    path = server.publish("dev", "fan", content)
    open_path = Path.open

    def open_on_full_disk(self: Path, mode: str = "r", *args: object, **kwargs: object) -> object:
        if self.suffix == ".part" and mode == "ab":
            return FullDisk(self, mode)
        return open_path(self, mode, *args, **kwargs)

    with monkeypatch.context() as patched:
        patched.setattr(Path, "open", open_on_full_disk)
        with pytest.raises(DownloadError, match=r"disk of .* is full, \d+ bytes into dev_fan"):
            download(server, tmp_path)
    assert len(server.of(path)) == 1  # trying again would not make room
    kept = part_of(tmp_path).stat().st_size
    assert 100_000 < kept <= 200_000
    (folder,) = download(server, tmp_path)
    assert server.of(path)[-1].range == f"bytes={kept}-"
    assert tree(folder) == FAN_IN_PLACE


def test_the_progress_ends_at_the_sum_of_all_bytes_whatever_happened_between(
    server: Server, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    bars = []

    class Bar:
        def __init__(self, total: int, **_: object) -> None:
            self.total, self.n = total, 0
            bars.append(self)

        def update(self, n: int) -> None:
            self.n += n

        def close(self) -> None:
            pass

    monkeypatch.setattr(archives, "tqdm", Bar)
    machines = ["bearing", "fan", "valve"]
    paths = [server.publish("dev", machine, archive_of(machine)) for machine in machines]
    for path, faults in zip(
        paths, (["break", "ignore_range"], ["wrong_byte"], ["break", "503"]), strict=True
    ):
        server.faults[path] = faults
    download(server, tmp_path, machine_types=machines)
    (bar,) = bars
    assert bar.n == bar.total == sum(len(server.files[path]) for path in paths)


# ---- command

ROOT = Path(__file__).parents[2]


def run_command(server: Server, output_dir: Path, *options: str) -> subprocess.Popen[str]:
    command = [sys.executable, "-m", "data_scripts.dcase", "--base_url", server.url]
    command += ["--year", "2023", "--subset", "dev", "--output_dir", str(output_dir), *options]
    environment = {**os.environ, "PYTHONPATH": str(ROOT)}
    # A child inherits that Ctrl-C is ignored, as it is for tests that run in the background.
    before = signal.signal(signal.SIGINT, signal.default_int_handler)
    try:
        return subprocess.Popen(
            command, cwd=output_dir.parent, env=environment, text=True, stderr=subprocess.PIPE
        )
    finally:
        signal.signal(signal.SIGINT, before)


def test_the_command_tells_failures_at_the_end_and_exits_with_1(
    server: Server, tmp_path: Path
) -> None:
    server.publish("dev", "fan", archive_of("fan"))
    process = run_command(server, tmp_path / "data", "--machine_types", "fan", "slider")
    _, errors = process.communicate(timeout=60)
    assert process.returncode == 1
    assert "Traceback" not in errors
    assert errors.splitlines()[-2] == "1 of 2 archives failed:"
    assert "dev_slider.zip: " in errors.splitlines()[-1]
    assert tree(tmp_path / "data/dev_data/raw/fan") == FAN_IN_PLACE


def test_an_interrupted_command_is_resumed_by_the_next(server: Server, tmp_path: Path) -> None:
    content = archive_of("fan", num_bytes=6_000_000)
    path = server.publish("dev", "fan", content)
    server.faults[path] = ["slow"]
    process = run_command(server, tmp_path / "data", "--machine_types", "fan")
    deadline = time.monotonic() + 60
    while not any(
        part.stat().st_size > 500_000 for part in (tmp_path / "data").glob("archives/*/*.part")
    ):
        assert time.monotonic() < deadline
        time.sleep(0.02)
    process.send_signal(signal.SIGINT)
    _, errors = process.communicate(timeout=60)
    assert process.returncode == 130, errors
    assert "Interrupted. Run the same command again" in errors
    assert "Traceback" not in errors
    kept = part_of(tmp_path / "data").stat().st_size
    assert 500_000 < kept < len(content)
    process = run_command(server, tmp_path / "data", "--machine_types", "fan")
    _, errors = process.communicate(timeout=60)
    assert process.returncode == 0, errors
    assert server.of(path)[-1].range == f"bytes={kept}-"
    assert server.of(path)[-1].body_bytes == len(content) - kept
    assert tree(tmp_path / "data/dev_data/raw/fan") == FAN_IN_PLACE

"""Shared by all tests: no network, a private cache, a small simulated factory, a loopback Hub."""

import atexit
import os
import shutil
import tempfile
from collections.abc import Iterator
from pathlib import Path

os.environ.setdefault("HF_HUB_OFFLINE", "1")
os.environ["HF_DATASETS_CACHE"] = _CACHE = tempfile.mkdtemp(prefix="nearfar_datasets_")
atexit.register(shutil.rmtree, _CACHE, ignore_errors=True)

import pytest  # noqa: E402 - the libraries read these variables when they are imported

from data_scripts.factory import simulate_factory  # noqa: E402
from tests.loopback_hub import TOKEN, LoopbackHub  # noqa: E402
from tests.person import Person  # noqa: E402

SHARED_DATA = Path(__file__).resolve().parents[2] / "shared" / "data"


@pytest.fixture(scope="session")
def factory_dir(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Two machines of 14 + 6 training and 12 test clips, 1 s each, in the layout of 2026."""
    folder = tmp_path_factory.mktemp("factory")
    simulate_factory(
        folder,
        num_machines=2,
        seed=3,
        source_train=14,
        target_train=6,
        test_per_group=3,
        seconds=1.0,
        num_workers=1,
    )
    return folder


@pytest.fixture(scope="module")
def hub_server() -> Iterator[LoopbackHub]:
    """What `hub` is served by."""
    with LoopbackHub() as server:
        yield server


@pytest.fixture
def hub_token() -> str | None:
    """The token that clients of `hub` have of the environment."""
    return TOKEN


@pytest.fixture
def hub(
    hub_server: LoopbackHub,
    hub_token: str | None,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> Iterator[LoopbackHub]:
    """An empty Hub that this process's clients ask, and only for what it knows."""
    hub_server.clear()
    with hub_server.clients_here(monkeypatch, tmp_path / "home", token=hub_token):
        yield hub_server
    hub_server.check()


@pytest.fixture
def person(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Person:
    """Let this process be a certain person's, on a certain computer."""
    user, computer = names = ("zdenka_quoll", "wombat-9000")
    home = tmp_path / user
    home.mkdir()
    for variable in ("USER", "LOGNAME", "USERNAME", "LNAME"):
        monkeypatch.setenv(variable, user)
    for variable in ("HOSTNAME", "HOST", "COMPUTERNAME"):
        monkeypatch.setenv(variable, computer)
    monkeypatch.setenv("HOME", str(home))
    for function in ("getpass.getuser", "os.getlogin"):
        monkeypatch.setattr(function, lambda: user)
    for function in ("socket.gethostname", "socket.getfqdn", "platform.node"):
        monkeypatch.setattr(function, lambda *_: computer)
    return Person(home, names)


@pytest.fixture(scope="session")
def recordings_dir() -> Path:
    """Real recordings of DCASE 2020; the test is skipped where they are not at hand."""
    folder = SHARED_DATA / "dcase2020_sample"
    if not folder.is_dir():
        pytest.skip("the DCASE 2020 sample is not beside the repository")
    return folder

"""The shipped checkpoint, its simulated recordings, a page that is served, and a browser."""

import os
import shutil
import zipfile
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import pytest
import soundfile

from demo.actions import Actions
from demo.detector import Detector
from demo.shelf import Shelf
from demo.sounds import FACTORY_FILE, FactorySounds

ROOT = Path(__file__).resolve().parents[2]
CHECKPOINT = ROOT / "checkpoints" / "quickstart"
RATE = 16_000
CHROMIUM_FLAGS = [
    "--no-sandbox",  # which root needs
    "--disable-background-networking",
    "--disable-component-update",
    "--disable-sync",
    "--no-first-run",
    "--disable-gpu",
    "--autoplay-policy=no-user-gesture-required",
]


class Served(NamedTuple):
    """A page, and what it is made of."""

    url: str
    actions: Actions


@pytest.fixture(scope="session")
def detector() -> Detector:
    return Detector.load(CHECKPOINT)


@pytest.fixture(scope="session")
def sounds(tmp_path_factory: pytest.TempPathFactory) -> FactorySounds:
    return FactorySounds(CHECKPOINT / FACTORY_FILE, tmp_path_factory.mktemp("simulated"))


@pytest.fixture(scope="module")
def served(
    detector: Detector, sounds: FactorySounds, tmp_path_factory: pytest.TempPathFactory
) -> Iterator[Served]:
    """The page on loopback, for a module."""
    app = pytest.importorskip("app", reason="gradio is missing: pip install -e '.[app]'")
    actions = Actions(detector, sounds, Shelf(tmp_path_factory.mktemp("shelf")))
    demo = app.build_demo(actions)
    _, url, _ = demo.launch(prevent_thread_lock=True, quiet=True, **app.launch_options(actions))
    yield Served(url, actions)
    demo.close()


@pytest.fixture(scope="module")
def browser() -> Iterator[Any]:
    """Headless Chromium."""
    path = next(filter(None, map(shutil.which, ("chromium", "chromium-browser"))), None)
    try:
        from playwright.sync_api import sync_playwright
    except ImportError:
        path = sync_playwright = None
    if path is None:
        missing = "Chromium or playwright is missing: apt-get install chromium, extra 'browser'"
        if os.environ.get("CI") == "true":
            pytest.fail(missing)
        pytest.skip(missing)
    with sync_playwright() as playwright:
        opened = playwright.chromium.launch(executable_path=path, args=CHROMIUM_FLAGS)
        yield opened
        opened.close()


@pytest.fixture(scope="session")
def hum() -> Callable[..., np.ndarray]:
    """A machine's steady sound: (num_samples,) float32."""

    def make(seconds: float, *, hertz: float = 240.0, seed: int = 0) -> np.ndarray:
        rng = np.random.default_rng(seed)
        t = np.arange(int(seconds * RATE)) / RATE
        tones = sum(np.sin(2 * np.pi * n * hertz * t) / n for n in range(1, 6))
        return (0.1 * tones + 0.02 * rng.standard_normal(len(t))).astype(np.float32)

    return make


@pytest.fixture(scope="session")
def bad_files(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    """Everything a stranger may upload by mistake or in malice, by what is wrong with it."""
    folder = tmp_path_factory.mktemp("bad")
    noise = 0.1 * np.random.default_rng(0).standard_normal((3 * RATE, 8))
    paths = {
        "text": folder / "notes.wav",
        "empty": folder / "empty.wav",
        "channels": folder / "eight.wav",
        "rate": folder / "telephone.wav",
        "silent": folder / "silent.wav",
        "short_far": folder / "short_far.wav",
        "near": folder / "near.wav",
        "long": folder / "long.flac",
        "bomb": folder / "bomb.zip",
        "outside": folder / "outside.zip",
        "stranger": folder / "stranger.zip",
    }
    paths["text"].write_text("This is not a sound.")
    paths["empty"].write_bytes(b"")
    soundfile.write(paths["channels"], noise, RATE)
    soundfile.write(paths["rate"], noise[:, 0], 8000)
    soundfile.write(paths["silent"], 0 * noise[:, :2], RATE)
    soundfile.write(paths["near"], noise[:, 0], RATE)
    soundfile.write(paths["short_far"], noise[:RATE, 1], RATE)
    paths["long"].write_bytes(promising_hours(folder, 3))
    name = "fanSim/test/section_00_source_test_normal_0000_spd_1_load_1.wav"
    with zipfile.ZipFile(paths["bomb"], "w", zipfile.ZIP_DEFLATED) as zipped:
        zipped.writestr(name, bytes(80 << 20))
    with zipfile.ZipFile(paths["outside"], "w") as zipped:
        zipped.writestr(f"../../{name}", b"RIFF")
    with zipfile.ZipFile(paths["stranger"], "w") as zipped:
        soundfile.write(folder / "clip.wav", noise[:, :2], RATE)
        zipped.write(folder / "clip.wav", name.replace("fanSim", "crane"))
    return paths


def promising_hours(folder: Path, hours: int) -> bytes:
    """Return a FLAC of one second whose header promises hours, as a browser can still draw it."""
    path = folder / "second.flac"
    soundfile.write(path, 0.1 * np.random.default_rng(0).standard_normal(RATE), RATE)
    content = bytearray(path.read_bytes())
    # STREAMINFO begins at byte 8; its bytes 13 to 17 end in 36 bits of total samples.
    total = hours * 3600 * RATE
    content[21] = (content[21] & 0xF0) | (total >> 32)
    content[22:26] = (total & 0xFFFF_FFFF).to_bytes(4, "big")
    return bytes(content)


@pytest.fixture(scope="session")
def clips_zip(sounds: FactorySounds, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The examples as a zip in the official layout, with a training clip that is passed over."""
    path = tmp_path_factory.mktemp("zip") / "test clips.zip"
    with zipfile.ZipFile(path, "w") as zipped:
        for example in sounds.examples():
            machine_type = example.machine.split("/")[1]
            zipped.write(example.path, f"plant 1/{machine_type}/test/{example.path.name}")
        zipped.writestr("plant 1/fanSim/train/anything.wav", b"")
    return path

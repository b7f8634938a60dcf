"""The Space folder holds all that the demo needs, and what ships is small and portable."""

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest
import torch
import yaml
from safetensors.torch import load_file, save_file

from nearfar import hub, space
from nearfar.space import CHECKPOINT, ROOT, pinned_versions, write_checkpoint, write_space


@pytest.fixture(scope="module")
def space_dir(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("space")
    hub.main(["space", str(folder)])
    return folder


def test_a_space_has_its_header_and_pinned_requirements(space_dir: Path) -> None:
    header = yaml.safe_load((space_dir / "README.md").read_text().split("---")[1])
    pins = pinned_versions(ROOT / "constraints.txt")
    assert header["sdk"] == "gradio"
    assert header["sdk_version"] == pins["gradio"]
    assert (space_dir / header["app_file"]).is_file()
    requirements = (space_dir / "requirements.txt").read_text().splitlines()
    assert {f"torch=={pins['torch']}", f"gradio=={pins['gradio']}"} <= set(requirements)
    assert {"transformers", "soundfile", "pyroomacoustics"} <= {
        r.split("==")[0] for r in requirements
    }
    assert (space_dir / "packages.txt").read_text().strip()
    assert not list(space_dir.rglob("__pycache__"))
    assert sum(path.stat().st_size for path in space_dir.rglob("*")) < 10_000_000


def test_an_installed_package_cannot_write_a_space(tmp_path: Path) -> None:
    (tmp_path / "nearfar").mkdir()
    with pytest.raises(FileNotFoundError, match=r"app\.py.*not a clone"):
        write_space(tmp_path / "space", root=tmp_path)
    assert not (tmp_path / "space").exists()


def test_a_checkpoint_ships_in_half_precision_without_code_or_paths(tmp_path: Path) -> None:
    run, shipped = tmp_path / "run", tmp_path / "shipped"
    run.mkdir()
    for name in space.CHECKPOINT_FILES:
        (run / name).write_text("{}")
    (run / "modeling_asd.py").write_text("")
    (run / "factory.json").write_text('{"arguments": {"seed": 3}}')
    recipe = {"data_dir": "/secret/place", "output_dir": "/secret/run", "year": 2026}
    (run / "recipe.yaml").write_text(yaml.safe_dump(recipe))
    tensors = {"weight": torch.full((3,), 1 / 3), "count": torch.tensor(70_000)}
    save_file(tensors, run / "model.safetensors")
    write_checkpoint(run, shipped, factory=run / "factory.json")
    found = load_file(shipped / "model.safetensors")
    assert found["weight"].dtype == torch.float16
    assert found["count"].item() == 70_000
    assert "secret" not in "".join(path.read_text() for path in shipped.glob("*.[jymd]*"))
    assert yaml.safe_load((shipped / "recipe.yaml").read_text())["year"] == 2026
    assert json.loads((shipped / "factory.json").read_text())["arguments"]["seed"] == 3
    assert not list(shipped.glob("*.py"))


def test_a_large_or_unfinished_run_does_not_ship(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    with pytest.raises(FileNotFoundError, match="complete run folder"):
        write_checkpoint(tmp_path, tmp_path / "shipped")
    monkeypatch.setattr(space, "MAX_CHECKPOINT_BYTES", 1000)
    with pytest.raises(ValueError, match="Train a smaller model"):
        write_checkpoint(ROOT / CHECKPOINT, tmp_path / "shipped")
    assert list((tmp_path / "shipped").iterdir()) == []


@pytest.mark.slow
def test_a_space_starts_by_itself_without_a_gpu(space_dir: Path) -> None:
    """In a fresh process, whose only packages of ours are those in the folder."""
    pytest.importorskip("gradio", reason="gradio is missing: pip install -e '.[app]'")
    check = (
        "import sys, threading, urllib.request, app\n"
        "from demo.actions import Actions\n"
        "from demo.detector import Detector\n"
        "from demo.shelf import Shelf\n"
        "from pathlib import Path\n"
        "model = app.default_model()\n"
        "detector = Detector.load(model)\n"
        "sounds = app.sounds_of(detector, model, None, Path(sys.argv[1]))\n"
        "actions = Actions(detector, sounds, Shelf(Path(sys.argv[1], 'shelf')))\n"
        "demo = app.build_demo(actions)\n"
        "_, url, _ = demo.launch(prevent_thread_lock=True, quiet=True,\n"
        "                        **app.launch_options(actions))\n"
        "print(urllib.request.urlopen(url).status, len(sounds.examples()), app.__file__)\n"
    )
    environment = os.environ | {"CUDA_VISIBLE_DEVICES": "", "PYTHONPATH": str(space_dir)}
    done = subprocess.run(
        [sys.executable, "-P", "-c", check, str(space_dir / "simulated")],
        cwd=space_dir,
        env=environment,
        capture_output=True,
        text=True,
        check=True,
    )
    assert done.stdout.split() == ["200", "9", str(space_dir / "app.py")]

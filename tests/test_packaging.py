"""What an installed package promises: its layout, its imports, its commands."""

import subprocess
import sys
import zipfile
from pathlib import Path

import hatchling.build
import pytest

ROOT = Path(__file__).resolve().parents[1]


@pytest.fixture(scope="module")
def wheel(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("wheel")
    with pytest.MonkeyPatch.context() as monkeypatch:
        monkeypatch.chdir(ROOT)
        name = hatchling.build.build_wheel(str(folder))
    return folder / name


def test_a_wheel_takes_no_top_level_name_but_its_own(wheel: Path) -> None:
    names = zipfile.ZipFile(wheel).namelist()
    tops = {name.split("/")[0] for name in names}
    assert {top for top in tops if not top.endswith(".dist-info")} == {"nearfar"}
    assert {
        *("nearfar/modeling/modeling_asd.py", "nearfar/data_scripts/near_far.py"),
        *("nearfar/model_card_template.md", "nearfar/schema.py"),
        *("nearfar/published/machines.csv", "nearfar/published/systems.yaml"),
    } <= set(names)


def test_the_wheels_packages_import_without_the_repository(wheel: Path, tmp_path: Path) -> None:
    zipfile.ZipFile(wheel).extractall(tmp_path)
    code = (
        "import sys; sys.path = [p for p in sys.path if p != sys.argv[2]];"
        "sys.path.insert(0, sys.argv[1]);"
        "import nearfar.modeling, nearfar.data_scripts.clip_names, nearfar.metrics;"
        "assert nearfar.modeling.__file__.startswith(sys.argv[1]);"
        "assert not {'modeling', 'data_scripts'} & set(sys.modules)"
    )
    subprocess.run([sys.executable, "-c", code, str(tmp_path), str(ROOT)], check=True, cwd=tmp_path)


def test_importing_the_schema_loads_no_heavy_library() -> None:
    code = "import sys, nearfar.schema; print(sorted({'torch', 'datasets'} & set(sys.modules)))"
    finished = subprocess.run(
        [sys.executable, "-c", code], check=True, capture_output=True, text=True, cwd=ROOT
    )
    assert finished.stdout.strip() == "[]"


def test_modeling_imports_without_what_a_checkpoint_may_not_need() -> None:
    blocked = ["datasets", "accelerate", "peft", "sklearn", "soundfile", "matplotlib", "nearfar"]
    code = (
        f"import sys; sys.modules.update(dict.fromkeys({blocked!r}));"
        "import modeling; modeling.AsdForProxyClassification"
    )
    subprocess.run([sys.executable, "-c", code], check=True, cwd=ROOT)

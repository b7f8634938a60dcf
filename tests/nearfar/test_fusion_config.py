"""A fusion that is given to transformers says in one line what to do."""

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from transformers import AutoConfig, AutoModel, pipeline

from nearfar.fusion import ScoreFusion
from nearfar.fusion_run import write_fusion_run

OLD_RUN = Path(__file__).parents[1] / "fixtures" / "run_format_1"


@pytest.fixture(scope="module")
def fused(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("runs") / "fused"
    write_fusion_run(folder, [OLD_RUN, OLD_RUN], ScoreFusion((0.5, 0.5)))
    return folder


@pytest.mark.parametrize(
    "load",
    [
        lambda folder: pipeline(
            "anomalous-sound-detection", model=str(folder), trust_remote_code=True
        ),
        lambda folder: pipeline(model=str(folder), trust_remote_code=True),
        lambda folder: AutoModel.from_pretrained(folder, trust_remote_code=True),
        lambda folder: AutoConfig.from_pretrained(folder, trust_remote_code=True),
    ],
)
def test_a_fusion_names_its_members_and_the_script_that_scores_by_it(
    fused: Path, load: Callable[[Path], Any]
) -> None:
    with pytest.raises(ValueError, match=r"is a fusion of 2 systems.*score\.py --model") as told:
        load(fused)
    assert "\n" not in str(told.value)
    members = [f"FOLDER/members/{number}_{OLD_RUN.name}" for number in (1, 2)]
    assert all(member in str(told.value) for member in members)
    assert str(fused) in str(told.value)


def test_its_code_is_one_file_that_needs_transformers_alone(fused: Path) -> None:
    assert [path.name for path in fused.glob("*.py")] == ["fusion_config.py"]
    code = (fused / "fusion_config.py").read_text()
    assert "from nearfar" not in code

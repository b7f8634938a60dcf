"""The metric's Space holds what `evaluate.load` and the Hub need, and is the project's metric."""

import subprocess
import sys
import tomllib
from pathlib import Path

import pytest
import yaml

from nearfar.metric_space import REQUIREMENTS, main, push_metric_space, write_metric_space

ROOT = Path(__file__).resolve().parents[2]


def test_the_folder_is_whole_and_its_metric_is_the_projects(tmp_path: Path) -> None:
    main(["--output_dir", str(tmp_path)])
    folder = tmp_path / "dcase_task2"
    assert {path.name for path in folder.iterdir()} == {
        *("app.py", "README.md", "requirements.txt", "dcase_task2.py", "metrics.py")
    }
    for name in ("dcase_task2.py", "metrics.py"):
        own = ROOT / "nearfar" / "dcase_task2" / name
        assert (folder / name).read_bytes() == own.read_bytes()
    card = (folder / "README.md").read_text(encoding="utf-8")
    header = yaml.safe_load(card.split("---\n")[1])
    assert header["sdk"] == "gradio"
    assert (folder / header["app_file"]).is_file()
    assert header["tags"] == ["evaluate", "metric"]
    compile((folder / "app.py").read_text(encoding="utf-8"), "app.py", "exec")
    for path in folder.iterdir():
        assert str(tmp_path) not in path.read_text(encoding="utf-8")


def test_versions_are_those_of_the_project(tmp_path: Path) -> None:
    project = tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))["project"]
    allowed = [*project["dependencies"], *project["optional-dependencies"]["train"]]
    assert set(REQUIREMENTS) <= set(allowed)
    card = (write_metric_space(tmp_path) / "README.md").read_text(encoding="utf-8")
    version = yaml.safe_load(card.split("---\n")[1])["sdk_version"]
    assert f"gradio=={version}" in (ROOT / "constraints.txt").read_text(encoding="utf-8").split()


def test_a_space_of_another_name_is_refused_before_anything_is_sent(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match=r"must end in /dcase_task2.*Give owner/dcase_task2"):
        push_metric_space(write_metric_space(tmp_path), "tester/metric")


APP = """
import json, runpy, sys
sys.modules["transformers"] = None  # evaluate would import its pipelines, slowly, for nothing here
import evaluate
del sys.modules["transformers"]
import gradio as gr

app = runpy.run_path("app.py")
print(json.dumps(app["score"]("scores.csv", 2026)))
for path in ("short.csv", "words.csv", None):
    try:
        app["score"](path, 2026)
    except gr.Error as error:
        print(error)
"""


@pytest.mark.slow  # gradio's import alone takes seconds
def test_the_app_scores_a_file_and_says_what_is_wrong_with_one(tmp_path: Path) -> None:
    folder = write_metric_space(tmp_path)
    head = "predictions,references,domains,machines\n"
    rows = [
        f"{score},{flag},{domain},2026/fan/00\n"
        for domain in ("source", "target")
        for score, flag in ((0.1, 0), (0.6, 0), (0.5, 1), (0.9, 1))
    ]
    (folder / "scores.csv").write_text(head + "".join(rows))
    (folder / "short.csv").write_text("predictions,references\n0.1,0\n")
    (folder / "words.csv").write_text(head + rows[0].replace("0.1", "low"))
    done = subprocess.run(
        [sys.executable, "-c", APP], cwd=folder, capture_output=True, text=True, check=False
    )
    assert done.returncode == 0, done.stderr
    answer, *errors = done.stdout.splitlines()
    # Of the pairs of a normal clip and an anomaly, 0.6 against 0.5 is wrong: one in four.
    assert '"auc_source": 0.75, "auc_target": 0.75' in answer
    assert "lacks the columns ['domains', 'machines']" in errors[0]
    assert "could not convert string to float" in errors[1]
    assert "Choose a CSV file" in errors[2]

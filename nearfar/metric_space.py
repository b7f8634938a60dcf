"""The `evaluate` metric as a Space of the Hub: the metric's own files, an app and a card.

    python -m nearfar.metric_space --output_dir SPACES [--repo_id owner/dcase_task2]

`evaluate.load` takes the folder, `SPACES/dcase_task2`, and the Space,
`evaluate.load("owner/dcase_task2", module_type="metric")`, for neither of which nearfar is needed.
"""

import argparse
import importlib.resources
import sys
from collections.abc import Sequence
from pathlib import Path

from huggingface_hub import HfApi
from huggingface_hub.errors import HfHubHTTPError

from nearfar.files import whole_folder

METRIC = "dcase_task2"  # evaluate looks for a script of the folder's or the Space's name
METRIC_FILES = ("dcase_task2.py", "metrics.py")
# Space file -> package data.
APP_FILES = {"app.py": "metric_space_app.py.txt", "README.md": "metric_space_card.md"}
REQUIREMENTS = (
    *("evaluate>=0.4.6,<0.5", "datasets>=5.2,<6", "numpy>=2,<3", "scipy>=1.13,<2"),
    "scikit-learn>=1.5,<2",
)


def write_metric_space(output_dir: Path) -> Path:
    """Write the Space's folder, whole or not at all; return it: `dcase_task2` in `output_dir`."""
    package = importlib.resources.files("nearfar")
    folder = output_dir / METRIC
    with whole_folder(folder, last=METRIC_FILES[0]) as partial:
        sources = {name: package.joinpath(METRIC, name) for name in METRIC_FILES}
        sources |= {name: package.joinpath(data) for name, data in APP_FILES.items()}
        for name, source in sources.items():
            (partial / name).write_text(source.read_text(encoding="utf-8"), encoding="utf-8")
        requirements = "".join(f"{line}\n" for line in REQUIREMENTS)
        (partial / "requirements.txt").write_text(requirements, encoding="utf-8")
    return folder


def push_metric_space(folder: Path, repo_id: str, *, private: bool = False) -> str:
    """Upload the Space; return the address of the commit.

    Args:
        folder: What `write_metric_space` returned.
        repo_id: "owner/dcase_task2".
        private: Whether a new Space is private.

    Raises:
        ValueError: The Space would have another name than the metric.
        HfHubHTTPError: The Hub refused.
    """
    if repo_id.rpartition("/")[2] != METRIC:
        raise ValueError(
            f"repo_id={repo_id!r} must end in /{METRIC}, for evaluate looks for a script of the "
            f"Space's name. Give owner/{METRIC}."
        )
    api = HfApi()
    api.create_repo(repo_id, repo_type="space", space_sdk="gradio", private=private, exist_ok=True)
    commit = api.upload_folder(
        repo_id=repo_id,
        repo_type="space",
        folder_path=folder,
        allow_patterns=[*METRIC_FILES, *APP_FILES, "requirements.txt"],
        commit_message="Metric",
    )
    return str(commit.commit_url)


def main(arguments: Sequence[str] | None = None) -> None:
    """Write the Space's folder, and push it if a repository is named."""
    parser = argparse.ArgumentParser(
        prog="python -m nearfar.metric_space",
        description="Write DCASE Task 2's metric as a Space that evaluate.load takes.",
    )
    parser.add_argument("--output_dir", type=Path, required=True, help=f"gets {METRIC}/")
    parser.add_argument("--repo_id", help=f"owner/{METRIC}, to push it there")
    parser.add_argument("--private", action="store_true", help="a new Space is private")
    args = parser.parse_args(arguments)
    try:
        folder = write_metric_space(args.output_dir)
        if args.repo_id is not None:
            push_metric_space(folder, args.repo_id, private=args.private)
    except HfHubHTTPError as error:
        sys.exit(f"{args.repo_id}: {' '.join(str(error).split())}")
    except (ValueError, OSError) as error:
        sys.exit(str(error))
    print(f"written to {folder}")  # noqa: T201 - the answer


if __name__ == "__main__":
    main()

"""What a user runs who has transformers and soundfile, and never heard of nearfar."""

import os
import subprocess
import sys
from pathlib import Path

import torch

# The repository may be installed here; at the user's it is not.
HIDDEN = """
import sys

class Hidden:
    def find_spec(self, name, path=None, target=None):
        if name.split(".")[0] in ("modeling", "nearfar", "data_scripts"):
            raise ModuleNotFoundError(f"{name} is hidden")

sys.meta_path.insert(0, Hidden())
"""


def run_without_nearfar(code: str, *arguments: object, folder: Path) -> None:
    """Run code in a process of its own, without this one's environment; it must succeed.

    Args:
        code: Python; nearfar's packages cannot be imported in it.
        arguments: Its `sys.argv[1:]`.
        folder: Where it works, and its home and cache are.
    """
    environment = {key: os.environ[key] for key in ("PATH", "LD_LIBRARY_PATH") if key in os.environ}
    environment |= {"HOME": str(folder), "HF_HOME": str(folder / "hf"), "HF_HUB_OFFLINE": "1"}
    environment["OMP_NUM_THREADS"] = str(torch.get_num_threads())  # sums in the same order
    process = subprocess.run(
        [sys.executable, "-I", "-c", HIDDEN + code, *map(str, arguments)],
        cwd=folder,
        env=environment,
        capture_output=True,
        text=True,
        check=False,
    )
    assert process.returncode == 0, process.stderr[-4_000:]

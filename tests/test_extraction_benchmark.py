"""Embedding a machine of 1,200 clips holds a batch of them, not all."""

import re
import subprocess
import sys

import pytest


@pytest.mark.slow
def test_memory_does_not_grow_with_the_number_of_clips() -> None:
    command = [sys.executable, "-m", "benchmarks.extraction", "--encoder", "fisher_tiny"]
    command += ["--clips", "1200", "--seconds", "1", "--batch_size", "16"]
    done = subprocess.run(command, check=True, capture_output=True, text=True)
    early, after = map(float, re.findall(r"([\d.]+) GiB after", done.stdout))
    # The recordings alone are 1,200 x 2 x 16,000 x 4 bytes = 0.14 GiB.
    assert after - early < 0.05

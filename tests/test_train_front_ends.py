"""train.py takes every front end by its name and options."""

import json

import numpy as np
import pytest

import score
import train
from data_scripts.near_far import decoded, load_near_far
from modeling import FRONT_ENDS
from tests.scripts import TINY_RECIPE, run_script

OPTIONS = {"nlms": {"num_taps": 64, "step_size": 0.5}, "rls": {"n_fft": 512, "hop_length": 256}}


@pytest.mark.parametrize("name", sorted(FRONT_ENDS.keys() - {"near", "complex_least_squares"}))
def test_a_system_is_trained_and_scored_behind_each_front_end(
    name, factory_dir, tmp_path, monkeypatch
) -> None:
    arguments = ["--data_dir", factory_dir, "--output_dir", tmp_path / "run", *TINY_RECIPE]
    options = OPTIONS.get(name, {})
    arguments += ["--front_end", name, "--front_end_options", json.dumps(options)]
    run_script(train, [*arguments, "--max_steps", 1], monkeypatch)
    config = json.loads((tmp_path / "run" / "config.json").read_text())
    assert (config["front_end"], config["front_end_options"]) == (name, options)
    clip = decoded(load_near_far(factory_dir)["test"])[0]
    assert np.isfinite(score.load_scorer(tmp_path / "run").score([clip]).anomaly_scores).all()

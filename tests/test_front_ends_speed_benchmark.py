"""The benchmark times every front end and measures what it claims to."""

import pytest
import torch

from benchmarks import front_ends_speed
from modeling import FRONT_ENDS


def test_every_front_end_has_a_line_and_those_that_follow_the_path_gain(
    monkeypatch, capsys
) -> None:
    words = ["front_ends_speed.py", "--batch_size", "2", "--seconds", "4", "--repetitions", "1"]
    monkeypatch.setattr("sys.argv", words)
    threads = torch.get_num_threads()
    try:
        front_ends_speed.main()
    finally:
        torch.set_num_threads(threads)
    rows = [line.split() for line in capsys.readouterr().out.splitlines()[2:]]
    assert [row[0] for row in rows] == list(FRONT_ENDS)
    assert all(float(row[1]) > 0 for row in rows)
    gains = {row[0]: float(row[2]) for row in rows}
    assert gains["near"] == 0
    for name in ("complex_least_squares", "lms", "nlms", "rls", "block_nlms"):
        assert gains[name] > 3


def test_the_noise_is_ten_decibels_louder_than_the_machine() -> None:
    machine, near, _ = front_ends_speed.simulate_clips(3, 16_000, seed=1)
    ratio = (near - machine).square().sum(-1) / machine.square().sum(-1)
    torch.testing.assert_close(ratio, torch.full((3,), 10.0), rtol=1e-4, atol=0)


def test_si_sdr_ignores_the_level_and_knows_a_worked_example() -> None:
    target, noise = torch.tensor([[3.0, 0.0, 4.0, 0.0]]), torch.tensor([[0.0, 0.3, 0.0, 0.4]])
    for gain in (1.0, 7.0):
        value = front_ends_speed.si_sdr(gain * (target + noise), target).item()
        assert value == pytest.approx(20, abs=1e-4)  # 25 to 0.25

"""The benchmark compares like with like: the plain networks are the networks."""

import pytest
import torch

from benchmarks import encoders
from benchmarks.plain_encoders import plain_beats, plain_eat, plain_fisher
from modeling import BeatsConfig, BeatsModel, EatConfig, EatModel, FisherConfig, FisherModel
from nearfar.files import read_json
from tests.tiny import TINY_EAT, TINY_ENCODER, TINY_FISHER

TINY = {
    "beats": (lambda: BeatsModel(BeatsConfig(**fields(TINY_ENCODER))), plain_beats),
    "eat": (lambda: EatModel(EatConfig(**fields(TINY_EAT))), plain_eat),
    "fisher": (lambda: FisherModel(FisherConfig(**fields(TINY_FISHER))), plain_fisher),
}


def fields(encoder: dict) -> dict:
    return {key: value for key, value in encoder.items() if key != "model_type"}


@pytest.mark.parametrize("name", TINY)
def test_the_plain_network_gives_the_same(name: str) -> None:
    build, plain = TINY[name]
    torch.manual_seed(0)
    model = build().eval()
    clips = 0.1 * torch.randn(3, 24_000)
    with torch.no_grad():
        expected = model(clips).last_hidden_state
        torch.testing.assert_close(plain(model, clips), expected, rtol=0, atol=1e-5)


def test_a_measurement_that_is_done_is_not_done_again(tmp_path, monkeypatch, capsys) -> None:
    tiny = {name: encoders.Encoder(*parts) for name, parts in TINY.items()}
    monkeypatch.setattr(encoders, "ENCODERS", tiny)
    words = "--encoders beats fisher --batch_sizes 1 2 --seconds 1 --repetitions 1"
    arguments = ["encoders.py", "--output_dir", str(tmp_path), *words.split()]
    monkeypatch.setattr("sys.argv", arguments)
    encoders.main()
    table = capsys.readouterr().out
    assert len(table.splitlines()) == 2 + 4
    result = read_json(tmp_path / "beats_2_1s.json")
    assert result["difference"] < 1e-5
    assert min(result[key] for key in ("seconds", "plain_seconds", "gflop", "ceiling")) > 0
    monkeypatch.setattr(encoders, "measure", None)  # cannot be called
    encoders.main()
    assert capsys.readouterr().out == table


def test_the_count_of_operations_is_that_of_the_matrix_products() -> None:
    build, _ = TINY["eat"]
    model = build().eval()
    tokens = 1 + model.patch_grid(16_000)[0] * 8
    size, inner = model.config.hidden_size, model.config.intermediate_size
    layer = 2 * tokens * (4 * size**2 + 2 * size * inner) + 4 * tokens**2 * size
    due = len(model.layers) * layer + 2 * (tokens - 1) * 16 * 16 * size
    counted = 1e9 * encoders.gflop_per_clip(model, torch.zeros(1, 16_000))
    mel = counted - due  # the filter bank is a product, too
    assert 0 <= mel == pytest.approx(2 * 98 * 257 * 128)

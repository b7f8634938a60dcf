"""The benchmark compares like with like: the plain networks are the networks."""

import pytest
import torch
from torch import nn

import train
from benchmarks import encoder_sizes, encoders
from benchmarks.encoder_sizes import Encoder
from benchmarks.plain_encoders import plain_beats, plain_eat, plain_fisher
from benchmarks.precisions import PerTokenLinear, measure_precisions, to_int8
from modeling import BeatsConfig, EatConfig, FisherConfig
from nearfar.files import read_json
from tests.tiny import TINY_EAT, TINY_ENCODER, TINY_FISHER


def fields(encoder: dict) -> dict:
    return {key: value for key, value in encoder.items() if key != "model_type"}


TINY = {
    "beats": Encoder(lambda: BeatsConfig(**fields(TINY_ENCODER)), plain_beats),
    "eat": Encoder(lambda: EatConfig(**fields(TINY_EAT)), plain_eat),
    "fisher": Encoder(lambda: FisherConfig(**fields(TINY_FISHER)), plain_fisher),
}
every_encoder = pytest.mark.parametrize("name", TINY)


def build(name: str) -> nn.Module:
    torch.manual_seed(0)
    return TINY[name].build()


@every_encoder
def test_the_plain_network_gives_the_same(name: str) -> None:
    model = build(name)
    clips = 0.1 * torch.randn(3, 24_000)
    with torch.no_grad():
        expected = model(clips).last_hidden_state
        torch.testing.assert_close(TINY[name].plain(model, clips), expected, rtol=0, atol=1e-5)


def run(monkeypatch, tmp_path, words: str) -> None:
    monkeypatch.setattr(encoders, "ENCODERS", TINY)
    monkeypatch.setattr("sys.argv", ["encoders.py", "--output_dir", str(tmp_path), *words.split()])
    encoders.main()


def test_a_measurement_that_is_done_is_not_done_again(tmp_path, monkeypatch, capsys) -> None:
    words = "--parts speed --encoders fisher --batch_sizes 1 2 --seconds 1 --repetitions 1"
    run(monkeypatch, tmp_path, words)
    table = capsys.readouterr().out
    assert len(table.splitlines()) == 3 + 1 + 2
    result = read_json(tmp_path / "fisher_2_1s.json")
    assert result["difference"] < 1e-5
    assert min(result[key] for key in ("seconds", "plain_seconds", "gflop", "ceiling")) > 0
    monkeypatch.setattr(encoders, "measure", None)  # cannot be called
    run(monkeypatch, tmp_path, words)
    assert capsys.readouterr().out == table


def test_the_count_of_operations_is_that_of_the_matrix_products() -> None:
    model = build("eat")
    tokens = 1 + model.patch_grid(16_000)[0] * 8
    size, inner = model.config.hidden_size, model.config.intermediate_size
    layer = 2 * tokens * (4 * size**2 + 2 * size * inner) + 4 * tokens**2 * size
    due = len(model.layers) * layer + 2 * (tokens - 1) * 16 * 16 * size
    counted = 1e9 * encoders.gflop_per_clip(model, torch.zeros(1, 16_000))
    mel = counted - due  # the filter bank is a product, too
    assert 0 <= mel == pytest.approx(2 * 98 * 257 * 128)


def test_an_int8_map_is_near_the_float32_one_and_each_token_is_alone() -> None:
    torch.manual_seed(0)
    linear = nn.Linear(64, 32)
    tokens = torch.randn(5, 7, 64) * torch.logspace(-4, 4, 7)[:, None]
    tokens[0, 0] = 0.0
    with torch.no_grad():
        exact, quantized = linear(tokens), PerTokenLinear(linear)
        mapped = quantized(tokens)
        for token in range(7):
            assert torch.equal(quantized(tokens[2:3, token]), mapped[2:3, token])
    assert torch.equal(mapped[0, 0], linear.bias)
    cosine = nn.functional.cosine_similarity(mapped - linear.bias, exact - linear.bias, dim=-1)
    assert cosine[1:].min() > 0.999


@every_encoder
def test_an_int8_encoder_hears_a_clip_the_same_beside_a_louder_one(name: str) -> None:
    model = to_int8(build(name))
    assert not any(
        isinstance(module, nn.Linear) and "gate" not in path
        for path, module in model.layers.named_modules()
    )
    clips = torch.randn(2, 16_000) * torch.tensor([[0.01], [1.0]])
    with torch.inference_mode():
        together = model(clips).last_hidden_state
        assert torch.equal(model(clips[:1]).last_hidden_state, together[:1])


@pytest.mark.slow
def test_other_precisions_stand_beside_float32(monkeypatch) -> None:
    rows = measure_precisions(
        build("fisher"), time_in_turn=lambda encoders: dict.fromkeys(encoders, 1.0)
    )
    by_name = {row["precision"]: row for row in rows}
    assert list(by_name) == ["float32", "compiled", "bfloat16", "int8"]
    assert by_name["float32"]["cosine"] == pytest.approx(1.0, abs=1e-6)
    assert all(row["cosine"] >= row["centred_cosine"] - 1e-6 for row in rows)
    assert by_name["compiled"]["centred_cosine"] > 0.99999
    assert 0.99 < by_name["bfloat16"]["cosine"] < 1 - 1e-8
    assert 0.99 < by_name["int8"]["cosine"] < 1 - 1e-8
    assert all(0 < row["official_score"] < 1 for row in rows)


def test_the_steps_of_every_kind_of_training_are_measured(tmp_path, monkeypatch, capsys) -> None:
    asked = []

    def measured(path, values, **_):
        asked.append((path.name, train.TrainArguments(**values, data_dir=path, output_dir=path)))
        return {"seconds_per_update": 1.5, "peak_gib": 2.5, "trainable": 3_000_000}

    monkeypatch.setattr(encoders, "measured", measured)
    run(monkeypatch, tmp_path, "--parts training --encoders eat")
    assert len({name for name, _ in asked}) == 3 * 2
    assert [args.activation_checkpointing for _, args in asked] == [False, True] * 3
    assert [args.lora_rank for _, args in asked] == [None] * 4 + [64] * 2
    table = capsys.readouterr().out
    assert len(table.splitlines()) == 3 + 1 + 6
    assert "3.00 M" in table


@pytest.mark.parametrize(
    ("name", "millions"),
    [
        ("beats_base", 90.3),
        ("eat_base", 85.3),
        ("eat_large", 302.6),
        ("fisher_small", 21.4),
        ("fisher_mini", 9.5),
        ("fisher_tiny", 5.4),
    ],
)
def test_the_published_sizes_are_those_of_the_papers(name: str, millions: float) -> None:
    with torch.device("meta"):
        model = encoder_sizes.ENCODERS[name].build()
    count = sum(parameter.numel() for parameter in model.parameters()) / 1e6
    assert count == pytest.approx(millions, abs=0.1)

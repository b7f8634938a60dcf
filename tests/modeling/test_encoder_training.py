"""What all encoders do alike in training, and when they are compiled."""

import math

import pytest
import torch
import torch.nn.functional as F

from tests.modeling.encoders import ATTENTION, CLASSES, noise, padded, tiny

every_encoder = pytest.mark.parametrize("name", CLASSES)


@every_encoder
@ATTENTION
def test_a_gradient_reaches_every_parameter(name: str, attention: str) -> None:
    model = tiny(name, head=True, num_labels=3).double().train()
    model.set_attn_implementation(attention)
    waveform, mask = padded([16_000, 8_000])
    labels = torch.tensor([[1.0, 0.0, 0.0], [0.0, 1.0, 1.0]])
    model(waveform, attention_mask=mask, labels=labels).loss.backward()
    for key, parameter in model.named_parameters():
        assert torch.isfinite(parameter.grad).all(), key
        if not key.endswith("k_proj.bias"):
            assert parameter.grad.abs().max() > 1e-9, key


@every_encoder
@pytest.mark.parametrize("reentrant", [False, True])
def test_activation_checkpointing_changes_no_gradient(name: str, *, reentrant: bool) -> None:
    waveform, mask = padded([16_000, 8_000])
    gradients = []
    for checkpointing in (False, True):
        model = tiny(name, attention_dropout=0.1, hidden_dropout=0.1, layerdrop=0.3).train()
        if checkpointing:
            model.activation_checkpointing_enable({"use_reentrant": reentrant})
        torch.manual_seed(1)
        # Not the square: the last LayerNorm keeps its sum, and the gradients would vanish.
        model(waveform, attention_mask=mask).last_hidden_state.sin().sum().backward()
        gradients.append({key: p.grad for key, p in model.named_parameters()})
    torch.testing.assert_close(gradients[1], gradients[0])


@every_encoder
def test_a_dropped_layer_passes_its_input_on_and_every_parameter_is_used(name: str) -> None:
    model = tiny(name, layerdrop=1.0).train()
    output = model(noise(1, 8_000), output_hidden_states=True)
    for hidden_states in output.hidden_states[1:]:
        assert torch.equal(hidden_states, output.hidden_states[0])
    output.last_hidden_state.sum().backward()
    assert all(parameter.grad is not None for parameter in model.parameters())
    before, after, *_ = model.eval()(noise(1, 8_000), output_hidden_states=True).hidden_states
    assert not torch.equal(before, after)


@every_encoder
@pytest.mark.parametrize(
    "option",
    ["hidden_dropout", "attention_dropout", "activation_dropout", "input_dropout", "layerdrop"],
)
def test_each_dropout_acts_in_training_only(name: str, option: str) -> None:
    model, waveform = tiny(name, **{option: 0.5}), noise(1, 8_000)
    torch.manual_seed(0)
    with torch.no_grad():
        assert torch.equal(model(waveform)[0], model(waveform)[0])
        model.train()
        outputs = [model(waveform)[0] for _ in range(8)]
    assert any(not torch.equal(outputs[0], output) for output in outputs[1:])


@pytest.mark.parametrize(
    ("name", "steps", "share"), [("beats", 60, 0.6), ("eat", 120, 0.6), ("fisher", 80, 0.3)]
)
def test_a_small_model_learns_from_scratch(name: str, steps: int, share: float) -> None:
    generator = torch.Generator().manual_seed(0)
    torch.manual_seed(0)
    model = tiny(name, head=True, num_labels=4).train()
    optimizer = torch.optim.AdamW(model.parameters(), lr=5e-3)
    time = torch.arange(3_000) / 16_000
    losses = []
    for _ in range(steps):
        classes = torch.randint(4, (16,), generator=generator)
        hertz = 400.0 * 2.0**classes
        clips = 0.05 * torch.sin(2 * math.pi * hertz[:, None] * time)
        clips = clips + 0.02 * torch.randn(clips.shape, generator=generator)
        loss = model(clips, labels=F.one_hot(classes, 4)).loss
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        losses.append(loss.item())
    guessing = -(0.25 * math.log(0.25) + 0.75 * math.log(0.75))  # 0.56
    assert sum(losses[-10:]) / 10 < share * guessing


ANY_RATE = [{"sampling_rate": rate} for rate in (16_000, 8_000, 32_000)]


@pytest.mark.parametrize(
    ("name", "options", "calls"),
    [
        pytest.param("beats", {}, [{}], marks=pytest.mark.slow),
        ("eat", {}, [{}]),
        ("eat", {"target_length": 64}, [{}]),
        pytest.param("fisher", {"flatten": "freq"}, ANY_RATE, marks=pytest.mark.slow),
        pytest.param("fisher", {"flatten": "time"}, ANY_RATE, marks=pytest.mark.slow),
    ],
    ids=str,
)
def test_it_compiles_as_one_graph(name: str, options: dict, calls: list[dict]) -> None:
    model = tiny(name, **options)
    waveform, mask = padded([8_000, 6_000])
    compiled = torch.compile(model, backend="eager", fullgraph=True)
    with torch.no_grad():
        for call in calls:
            inputs = {"attention_mask": mask, "output_hidden_states": True} | call
            expected, output = (m(waveform, **inputs) for m in (model, compiled))
            assert "hidden_states" in expected
            torch.testing.assert_close(dict(output), dict(expected))

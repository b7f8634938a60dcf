"""What the layers of all encoders do alike."""

import pytest
import torch

from modeling import BeatsConfig, BeatsModel, EatConfig, EatModel, FisherConfig, FisherModel
from tests.tiny import ENCODERS

MODELS = {
    "beats": (BeatsConfig, BeatsModel),
    "eat": (EatConfig, EatModel),
    "fisher": (FisherConfig, FisherModel),
}
every_encoder = pytest.mark.parametrize("name", MODELS)


@pytest.fixture
def build():
    def build(name):
        config_class, model_class = MODELS[name]
        values = {k: v for k, v in ENCODERS[name].items() if k != "model_type"}
        torch.manual_seed(0)
        return model_class(config_class(**values)).eval()

    return build


@pytest.fixture
def clips():
    """Return three clips, the last of them a third of the others' length."""
    waveform = 0.1 * torch.randn(3, 24_000, generator=torch.Generator().manual_seed(1))
    mask = torch.ones(3, 24_000, dtype=torch.long)
    mask[2, 8_000:] = 0
    return waveform * mask, mask


@every_encoder
def test_clips_are_taken_singly_for_inference_on_a_cpu_only(name, build):
    layer = build(name).layers[0]
    states = torch.zeros(2, 3, 4)
    with torch.inference_mode():
        assert layer.takes_clips_singly(states)
        assert not layer.takes_clips_singly(states.to("meta"))
        assert not layer.train().takes_clips_singly(states)  # dropout
    assert not layer.eval().takes_clips_singly(states)  # a graph for the backward pass
    layer.config._attn_implementation = "eager"
    with torch.inference_mode():
        assert not layer.takes_clips_singly(states)  # weights are recorded once per layer


@every_encoder
def test_clips_taken_singly_give_what_the_whole_batch_gives(name, build, clips, monkeypatch):
    model = build(name)
    waveform, mask = clips

    def states():
        with torch.no_grad():
            output = model(waveform, attention_mask=mask, output_hidden_states=True)
        return output.hidden_states

    singly = states()
    monkeypatch.setattr(type(model.layers[0]), "takes_clips_singly", lambda *_: False)
    together = states()
    assert len(singly) == len(together) == 1 + len(model.layers)
    kept = model.patch_mask(mask)
    for one, all_at_once in zip(singly, together, strict=True):
        torch.testing.assert_close(
            model.split(one)[1][kept], model.split(all_at_once)[1][kept], rtol=0, atol=1e-5
        )


@every_encoder
def test_a_mask_without_padding_changes_nothing(name, build, clips):
    model = build(name)
    waveform, mask = clips[0][:2], clips[1][:2]
    with torch.no_grad():
        assert torch.equal(
            model(waveform, attention_mask=mask).last_hidden_state,
            model(waveform).last_hidden_state,
        )


@every_encoder
def test_layer_dropout_keeps_or_drops_a_layer_for_the_whole_batch(name, build, clips):
    model = build(name)
    layer = model.layers[0]
    layer.layerdrop = 1.0
    states = torch.randn(model.embed_patches(model.spectrogram(clips[0])).shape)
    shared = (model.position_bias(states.shape[1]),) if name == "beats" else ()
    assert not torch.equal(layer(states, None, *shared), states)  # in evaluation none is dropped
    assert torch.equal(layer.train()(states, None, *shared), states)

import math

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from modeling.configuration_asd import BeatsConfig
from modeling.modeling_beats import relative_position_bucket
from tests.modeling.encoders import ATTENTION, authors, noise, padded, recorded, tiny


@pytest.fixture(scope="module")
def io() -> dict[str, Tensor]:
    return recorded("beats")


# --- Equality with the authors' code ---------------------------------------------------------


@ATTENTION
def test_every_stage_equals_the_authors(io, attention: str) -> None:
    model = authors("beats", attention=attention)
    close = {"rtol": 0, "atol": 3e-5}
    with torch.no_grad():
        torch.testing.assert_close(model.patch_embedding(io["fbank"]), io["patch_embed"], **close)
        output = model(input_features=io["fbank"], output_hidden_states=True)
    torch.testing.assert_close(torch.stack(output.hidden_states), io["layers"], **close)
    torch.testing.assert_close(output.last_hidden_state, io["features"], **close)


@ATTENTION
def test_in_float64_the_encoder_equals_the_authors_to_the_last_digits(io, attention: str) -> None:
    model = authors("beats", attention=attention).double()
    with torch.no_grad():
        output = model(input_features=io["fbank"]).last_hidden_state
    torch.testing.assert_close(output, io["features_f64_from_fbank32"], rtol=0, atol=1e-12)


@ATTENTION
def test_waveforms_give_the_authors_features(io, attention: str) -> None:
    model = authors("beats", attention=attention)
    with torch.no_grad():
        # `wav` holds digital silence, where the spectrogram shows rounding; `wav_long` does not.
        torch.testing.assert_close(
            model(io["wav"]).last_hidden_state, io["features"], rtol=0, atol=1e-3
        )
        torch.testing.assert_close(
            model(io["wav_long"]).last_hidden_state, io["features_long"], rtol=0, atol=1e-4
        )


@ATTENTION
def test_probabilities_equal_the_authors(io, attention: str) -> None:
    model = authors("beats", attention=attention, head=True)
    with torch.no_grad():
        for clips, probabilities in (("wav", "probs"), ("wav_long", "probs_long")):
            logits = model(io[clips]).logits
            torch.testing.assert_close(logits.sigmoid(), io[probabilities], rtol=0, atol=1e-4)


@ATTENTION
def test_a_padded_batch_equals_the_authors_given_their_token_mask(io, attention: str) -> None:
    # Their mask cuts clip 1 inside a time patch; ours does not, so theirs is handed in.
    patch_mask = ~io["token_padding_mask"].bool()
    model = authors("beats", attention=attention, head=True)
    encoder = model.beats
    with torch.no_grad():
        hidden_states = encoder.embed_patches(encoder.spectrogram(io["wav_padded"]), patch_mask)
        position_bias = encoder.position_bias(hidden_states.shape[1])
        for layer in encoder.layers:
            hidden_states = layer(hidden_states, patch_mask, position_bias)
        logits = model.predictor(hidden_states)
    # features_padded is the bare encoder's, and the two checkpoints differ in the predictor only.
    close = {"rtol": 0, "atol": 1e-3}
    torch.testing.assert_close(
        hidden_states[patch_mask], io["features_padded"][patch_mask], **close
    )
    mean = logits.where(patch_mask[..., None], 0).sum(dim=1) / patch_mask.sum(dim=1, keepdim=True)
    torch.testing.assert_close(mean.sigmoid(), io["probs_padded"], rtol=0, atol=1e-4)


def test_a_clip_that_fills_a_padded_batch_equals_the_authors(io) -> None:
    attention_mask = 1 - io["padding_mask"].long()
    model = authors("beats")
    with torch.no_grad():
        output = model(io["wav_padded"], attention_mask=attention_mask).last_hidden_state
    torch.testing.assert_close(output[0], io["features_padded"][0], rtol=0, atol=1e-3)
    patches = model.patch_mask(attention_mask).sum(dim=1).tolist()
    assert patches == [144, 88]  # 88 of the authors' 95: whole time patches only


# --- Buckets and position bias ---------------------------------------------------------------


def test_buckets_follow_the_definition() -> None:
    distances = torch.arange(-2_000, 2_001)
    buckets = relative_position_bucket(distances, num_buckets=320, max_distance=800)

    def bucket(distance: int) -> int:
        magnitude = abs(distance)
        if magnitude >= 80:
            octaves = math.log(magnitude / 80) / math.log(800 / 80)
            magnitude = min(159, 80 + math.trunc(octaves * 80))
        return magnitude + (160 if distance > 0 else 0)

    assert buckets.tolist() == [bucket(distance) for distance in distances.tolist()]


def test_position_bias_is_the_bucket_of_key_minus_query() -> None:
    model = tiny("beats")
    bias = model.position_bias(50)
    for query, key in [(0, 0), (3, 7), (7, 3), (0, 49), (49, 0)]:
        bucket = relative_position_bucket(
            torch.tensor(key - query), num_buckets=32, max_distance=64
        )
        assert torch.equal(bias[:, query, key], model.relative_bias.weight[bucket])


def test_position_embedding_equals_weight_normalisation() -> None:
    position = tiny("beats").position
    with torch.no_grad():
        position.magnitude.uniform_(0.5, 1.5)
        position.bias.normal_()
    convolution = nn.utils.parametrizations.weight_norm(
        nn.Conv1d(32, 32, 8, padding=4, groups=4), dim=2
    )
    convolution.load_state_dict(
        {
            "bias": position.bias,
            "parametrizations.weight.original0": position.magnitude,
            "parametrizations.weight.original1": position.direction,
        }
    )
    hidden_states = torch.randn(2, 16, 32)
    expected = hidden_states + F.gelu(convolution(hidden_states.mT)[..., :-1]).mT
    torch.testing.assert_close(position(hidden_states), expected)


# --- Padding ----------------------------------------------------------------------------------


def test_the_patch_grid_counts_the_patches() -> None:
    model = tiny("beats")
    for num_samples in (2_800, 5_359, 5_360, 32_000):
        time, band = model.patch_grid(num_samples)
        assert model(noise(1, num_samples)).last_hidden_state.shape[1] == time * band
    assert model.patch_grid(160_000) == (62, 8)
    assert model.patch_grid(2_799) == (0, 8)


def test_patches_run_through_time_slowly_and_through_bands_fast() -> None:
    model = tiny("beats")
    features = torch.zeros(1, 64, 128)
    with torch.no_grad():
        silent = model.patch_embedding(features)
        features[0, 32:48, 48:64] = 1.0  # time patch 2, band 3
        moved = (model.patch_embedding(features) - silent).abs().amax(dim=-1)[0] > 1e-6
    assert moved.nonzero().flatten().tolist() == [2 * 8 + 3]


def test_all_hidden_states_are_patches_and_none_a_class_token() -> None:
    model = tiny("beats")
    output = model(0.1 * noise(2, 8_000), output_hidden_states=True)
    for hidden_states in (*output.hidden_states, output.last_hidden_state):
        class_tokens, patches = model.split(hidden_states)
        assert class_tokens.shape == (2, model.num_class_tokens, hidden_states.shape[2])
        assert torch.equal(patches, hidden_states)
    assert model.num_class_tokens == 0


# --- Inputs -----------------------------------------------------------------------------------


def test_stepping_through_the_layers_by_hand_gives_the_same() -> None:
    model = authors("beats")
    waveform, mask = padded([8_000, 16_000])
    with torch.no_grad():
        output = model(waveform, attention_mask=mask, output_hidden_states=True)
        patch_mask = model.patch_mask(mask)
        stepped = [model.embed_patches(model.spectrogram(waveform), patch_mask)]
        for layer in model.layers:
            bias = model.position_bias(stepped[0].shape[1])
            stepped.append(layer(stepped[-1], patch_mask, bias))
    for ours, expected in zip(stepped, output.hidden_states, strict=True):
        assert torch.equal(ours, expected)
    assert torch.equal(stepped[-1], output.last_hidden_state)


# --- Precision and compilation ----------------------------------------------------------------


# --- Training ---------------------------------------------------------------------------------


@pytest.mark.parametrize("option", ["gated_position_bias", "deep_norm", "conv_bias"])
def test_each_switch_of_the_architecture_acts(option: str) -> None:
    default = getattr(BeatsConfig(), option)
    model = tiny("beats", **{option: not default})
    keys = tiny("beats").state_dict().keys() ^ model.state_dict().keys()
    part = {"gated_position_bias": "gate", "deep_norm": "", "conv_bias": "convolution.bias"}[option]
    assert bool(keys) == bool(part)
    assert all(part in key for key in keys)
    waveform, mask = padded([8_000, 6_000])
    outputs = [m(waveform, attention_mask=mask)[0] for m in (tiny("beats"), model)]
    assert not torch.allclose(*outputs, atol=1e-3)
    alone = model(waveform[1:, :6_000])[0]
    torch.testing.assert_close(outputs[1][1:, : alone.shape[1]], alone, rtol=0, atol=1e-5)


def test_new_weights_have_the_size_deep_norm_prescribes() -> None:
    model = tiny("beats", hidden_size=128, intermediate_size=256, num_hidden_layers=4)
    gain = (8 * 4) ** -0.25
    layer = model.layers[3]
    for weight, factor in (
        (model.patch_embedding.projection.weight, 1.0),
        (layer.attention.q_proj.weight, 1.0),
        (layer.attention.k_proj.weight, 1.0),
        (layer.attention.v_proj.weight, gain),
        (layer.attention.out_proj.weight, gain),
        (layer.fc1.weight, gain),
        (layer.fc2.weight, gain),
    ):
        expected = factor * (2 / sum(weight.shape)) ** 0.5
        assert weight.std().item() == pytest.approx(expected, rel=0.05)
    convolution = model.patch_embedding.convolution.weight
    bound = convolution[0].numel() ** -0.5  # a uniform draw's, as torch's own
    assert bound == pytest.approx(convolution.abs().max().item(), rel=0.01)
    weight = model.position.weight()
    torch.testing.assert_close(weight, model.position.direction)  # the norm is its own
    assert (layer.attention.gate_scale == 1).all()


# --- Saving -----------------------------------------------------------------------------------

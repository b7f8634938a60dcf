import copy
import json
import math
from collections.abc import Callable
from pathlib import Path

import pytest
import torch
import torch.nn.functional as F
from safetensors.torch import load_file
from torch import Tensor, nn

from modeling.configuration_asd import BeatsConfig
from modeling.convert_original import load_original
from modeling.modeling_beats import (
    BeatsForAudioClassification,
    BeatsModel,
    relative_position_bucket,
)
from tests.tiny import TINY_ENCODER

FIXTURES = Path(__file__).parents[1] / "fixtures" / "beats"
TINY = {name: value for name, value in TINY_ENCODER.items() if name != "model_type"}
ATTENTION = pytest.mark.parametrize("attention", ["sdpa", "eager"])


@pytest.fixture(scope="module")
def io() -> dict[str, Tensor]:
    return load_file(FIXTURES / "io.safetensors")


@pytest.fixture(scope="module")
def authors() -> Callable[..., BeatsModel | BeatsForAudioClassification]:
    """Return a function that loads a fixture's model, the classifier if `head`."""
    loaded = {
        head: load_original(FIXTURES / ("finetuned.pt" if head else "pretrained.pt"), head=head)
        for head in (False, True)
    }

    def load(*, attention: str = "sdpa", head: bool = False):
        model = copy.deepcopy(loaded[head])
        model.set_attn_implementation(attention)
        return model

    return load


def tiny(model_class: type = BeatsModel, **options) -> BeatsModel | BeatsForAudioClassification:
    with torch.random.fork_rng():
        torch.manual_seed(0)
        return model_class(BeatsConfig(**(TINY | options))).eval()


def noise(*shape: int, seed: int = 0) -> Tensor:
    return 0.1 * torch.randn(shape, generator=torch.Generator().manual_seed(seed))


def padded(lengths: list[int], *, filler: float = 0.0) -> tuple[Tensor, Tensor]:
    """Return clips of these lengths in one batch, and their attention mask."""
    waveform = torch.full((len(lengths), max(lengths)), filler)
    mask = torch.zeros(waveform.shape, dtype=torch.long)
    for row, length in enumerate(lengths):
        waveform[row, :length] = noise(length, seed=row)
        mask[row, :length] = 1
    return waveform, mask


# --- Equality with the authors' code ---------------------------------------------------------


@ATTENTION
def test_every_stage_equals_the_authors(io, authors, attention: str) -> None:
    model = authors(attention=attention)
    close = {"rtol": 0, "atol": 3e-5}
    with torch.no_grad():
        torch.testing.assert_close(model.patch_embedding(io["fbank"]), io["patch_embed"], **close)
        output = model(input_features=io["fbank"], output_hidden_states=True)
    torch.testing.assert_close(torch.stack(output.hidden_states), io["layers"], **close)
    torch.testing.assert_close(output.last_hidden_state, io["features"], **close)


@ATTENTION
def test_in_float64_the_encoder_equals_the_authors_to_the_last_digits(
    io, authors, attention: str
) -> None:
    model = authors(attention=attention).double()
    with torch.no_grad():
        output = model(input_features=io["fbank"]).last_hidden_state
    torch.testing.assert_close(output, io["features_f64_from_fbank32"], rtol=0, atol=1e-12)


@ATTENTION
def test_waveforms_give_the_authors_features(io, authors, attention: str) -> None:
    model = authors(attention=attention)
    with torch.no_grad():
        # `wav` holds digital silence, where the spectrogram shows rounding; `wav_long` does not.
        torch.testing.assert_close(
            model(io["wav"]).last_hidden_state, io["features"], rtol=0, atol=1e-3
        )
        torch.testing.assert_close(
            model(io["wav_long"]).last_hidden_state, io["features_long"], rtol=0, atol=1e-4
        )


@ATTENTION
def test_probabilities_equal_the_authors(io, authors, attention: str) -> None:
    model = authors(attention=attention, head=True)
    with torch.no_grad():
        for clips, probabilities in (("wav", "probs"), ("wav_long", "probs_long")):
            logits = model(io[clips]).logits
            torch.testing.assert_close(logits.sigmoid(), io[probabilities], rtol=0, atol=1e-4)


@ATTENTION
def test_a_padded_batch_equals_the_authors_given_their_token_mask(
    io, authors, attention: str
) -> None:
    # Their mask cuts clip 1 inside a time patch; ours does not, so theirs is handed in.
    patch_mask = ~io["token_padding_mask"].bool()
    model = authors(attention=attention, head=True)
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


def test_a_clip_that_fills_a_padded_batch_equals_the_authors(io, authors) -> None:
    attention_mask = 1 - io["padding_mask"].long()
    model = authors()
    with torch.no_grad():
        output = model(io["wav_padded"], attention_mask=attention_mask).last_hidden_state
    torch.testing.assert_close(output[0], io["features_padded"][0], rtol=0, atol=1e-3)
    patches = model.patch_mask(attention_mask).sum(dim=1).tolist()
    assert patches == [144, 88]  # 88 of the authors' 95: whole time patches only


def test_every_parameter_but_the_key_bias_matters(io, authors) -> None:
    model = authors(head=True).double()
    features = io["fbank"].double()
    with torch.no_grad():
        before = model(input_features=features).logits
        for name, parameter in model.named_parameters():
            kept = parameter.clone()
            # Not a factor: the direction of the position embedding has no length.
            parameter.add_(noise(*parameter.shape).double())
            moved = (model(input_features=features).logits - before).abs().max().item()
            parameter.copy_(kept)
            if name.endswith("k_proj.bias"):  # the softmax does not see it
                assert moved < 1e-12, name
            else:
                assert moved > 1e-6, name


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
    model = tiny()
    bias = model.position_bias(50)
    for query, key in [(0, 0), (3, 7), (7, 3), (0, 49), (49, 0)]:
        bucket = relative_position_bucket(
            torch.tensor(key - query), num_buckets=32, max_distance=64
        )
        assert torch.equal(bias[:, query, key], model.relative_bias.weight[bucket])


def test_position_embedding_equals_weight_normalisation() -> None:
    position = tiny().position
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


@ATTENTION
@pytest.mark.parametrize(
    ("dtype", "atol"),
    # bfloat16 keeps 8 bits: sums of another order differ by a few units in the last place.
    [(torch.float32, 1e-5), (torch.bfloat16, 0.05)],
    ids=["float32", "bfloat16"],
)
def test_a_clip_is_the_same_alone_and_beside_longer_clips(
    authors, attention: str, dtype: torch.dtype, atol: float
) -> None:
    lengths = [2_800, 32_000, 9_999, 30_400]
    waveform, mask = padded(lengths, filler=math.nan)  # what is behind a clip is never read
    model = authors(attention=attention).to(dtype)
    with torch.no_grad():
        together = model(waveform, attention_mask=mask, output_hidden_states=True).hidden_states
        patch_mask = model.patch_mask(mask)
        for row, length in enumerate(lengths):
            alone = model(waveform[row : row + 1, :length], output_hidden_states=True)
            assert patch_mask[row].sum() == math.prod(model.patch_grid(length))
            for ours, expected in zip(together, alone.hidden_states, strict=True):
                torch.testing.assert_close(
                    ours[row, patch_mask[row]], expected[0], rtol=0, atol=atol
                )
            assert torch.isfinite(together[-1][row]).all()


def test_logits_are_the_same_alone_and_beside_longer_clips(authors) -> None:
    lengths = [3_000, 32_000]
    waveform, mask = padded(lengths)
    model = authors(head=True)
    with torch.no_grad():
        together = model(waveform, attention_mask=mask).logits
        for row, length in enumerate(lengths):
            alone = model(waveform[row : row + 1, :length]).logits
            torch.testing.assert_close(together[row], alone[0], rtol=0, atol=1e-5)


def test_a_mask_of_ones_is_no_mask(authors) -> None:
    model, waveform = authors(), noise(2, 16_000)
    with torch.no_grad():
        masked = model(waveform, attention_mask=torch.ones_like(waveform)).last_hidden_state
        torch.testing.assert_close(masked, model(waveform).last_hidden_state, rtol=0, atol=1e-6)


def test_the_patch_grid_counts_the_patches() -> None:
    model = tiny()
    for num_samples in (2_800, 5_359, 5_360, 32_000):
        time, band = model.patch_grid(num_samples)
        assert model(noise(1, num_samples)).last_hidden_state.shape[1] == time * band
    assert model.patch_grid(160_000) == (62, 8)
    assert model.patch_grid(2_799) == (0, 8)


def test_patches_run_through_time_slowly_and_through_bands_fast() -> None:
    model = tiny()
    features = torch.zeros(1, 64, 128)
    with torch.no_grad():
        silent = model.patch_embedding(features)
        features[0, 32:48, 48:64] = 1.0  # time patch 2, band 3
        moved = (model.patch_embedding(features) - silent).abs().amax(dim=-1)[0] > 1e-6
    assert moved.nonzero().flatten().tolist() == [2 * 8 + 3]


def test_all_hidden_states_are_patches_and_none_a_class_token() -> None:
    model = tiny()
    output = model(0.1 * noise(2, 8_000), output_hidden_states=True)
    for hidden_states in (*output.hidden_states, output.last_hidden_state):
        class_tokens, patches = model.split(hidden_states)
        assert class_tokens.shape == (2, model.num_class_tokens, hidden_states.shape[2])
        assert torch.equal(patches, hidden_states)
    assert model.num_class_tokens == 0


# --- Inputs -----------------------------------------------------------------------------------


def test_features_in_place_of_the_waveform_give_the_same(authors) -> None:
    model = authors()
    waveform, mask = padded([8_000, 16_000])
    with torch.no_grad():
        direct = model(waveform, attention_mask=mask).last_hidden_state
        features = model.spectrogram(waveform)
        indirect = model(input_features=features, attention_mask=mask).last_hidden_state
    assert torch.equal(direct, indirect)


def test_stepping_through_the_layers_by_hand_gives_the_same(authors) -> None:
    model = authors()
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


def test_eager_attention_returns_weights_that_skip_padding(authors) -> None:
    model = authors(attention="eager")
    waveform, mask = padded([8_000, 16_000])
    attentions = model(waveform, attention_mask=mask, output_attentions=True).attentions
    assert len(attentions) == 3
    for weights in attentions:
        torch.testing.assert_close(weights.sum(dim=-1), torch.ones(weights.shape[:-1]))
        hidden = ~model.patch_mask(mask)[:, None, None].expand_as(weights)
        assert not weights[hidden].any()


def test_both_or_neither_input_is_refused() -> None:
    model = tiny()
    with pytest.raises(ValueError, match="got neither of input_values and input_features"):
        model()
    with pytest.raises(ValueError, match="got both of input_values and input_features"):
        model(noise(1, 4_000), input_features=noise(1, 32, 128))


def test_a_clip_shorter_than_a_patch_is_refused() -> None:
    model = tiny()
    with pytest.raises(ValueError, match="2799 samples came; one patch needs 2800"):
        model(noise(1, 2_799))
    waveform, mask = padded([2_799, 8_000])
    with pytest.raises(ValueError, match="A clip of 2799 samples came; one patch needs 2800"):
        model(waveform, attention_mask=mask)
    with pytest.raises(ValueError, match="15 frames; one patch takes 16"):
        model(input_features=noise(1, 15, 128))


def test_padding_before_sound_is_refused() -> None:
    mask = torch.ones(2, 8_000)
    mask[1, :1_000] = 0
    with pytest.raises(ValueError, match="Padding belongs at the end"):
        tiny()(noise(2, 8_000), attention_mask=mask)


@pytest.mark.parametrize("shape", [(2, 7_000), (1, 8_000), (8_000,)])
def test_a_mask_of_another_shape_is_refused(shape: tuple[int, ...]) -> None:
    with pytest.raises(ValueError, match="does not fit 2 clips"):
        tiny()(noise(2, 8_000), attention_mask=torch.ones(shape))


def test_inputs_without_a_batch_axis_are_refused() -> None:
    with pytest.raises(ValueError, match="Add the batch axis"):
        tiny()(noise(8_000))
    with pytest.raises(ValueError, match=r"expected \(batch, frames, 128\)"):
        tiny()(input_features=noise(1, 32, 64))


# --- Precision and compilation ----------------------------------------------------------------


def test_half_precision_stays_near_float32(authors, io) -> None:
    model, waveform = authors(), io["wav_long"]
    with torch.no_grad():
        exact = model(waveform).last_hidden_state
        with torch.autocast("cpu", dtype=torch.bfloat16):
            autocast = model(waveform).last_hidden_state
            assert torch.equal(model.spectrogram(waveform), authors().spectrogram(waveform))
        half = model.to(torch.bfloat16)(waveform).last_hidden_state
    assert half.dtype == torch.bfloat16
    # Outputs have RMS 1; bfloat16 keeps about three digits through three layers.
    for output in (autocast, half):
        assert (output.float() - exact).square().mean().sqrt() < 0.03


@pytest.mark.slow
def test_it_compiles_as_one_graph() -> None:
    model = tiny()
    waveform, mask = padded([8_000, 6_000])
    compiled = torch.compile(model, backend="eager", fullgraph=True)
    with torch.no_grad():
        expected = model(waveform, attention_mask=mask, output_hidden_states=True)
        output = compiled(waveform, attention_mask=mask, output_hidden_states=True)
    torch.testing.assert_close(output.hidden_states, expected.hidden_states)


# --- Training ---------------------------------------------------------------------------------


@ATTENTION
def test_a_gradient_reaches_every_parameter(attention: str) -> None:
    model = tiny(BeatsForAudioClassification, num_labels=3).double().train()
    model.set_attn_implementation(attention)
    waveform, mask = padded([16_000, 8_000])
    labels = torch.tensor([[1.0, 0.0, 0.0], [0.0, 1.0, 1.0]])
    model(waveform, attention_mask=mask, labels=labels).loss.backward()
    for name, parameter in model.named_parameters():
        assert torch.isfinite(parameter.grad).all(), name
        if not name.endswith("k_proj.bias"):
            assert parameter.grad.abs().max() > 1e-9, name


@pytest.mark.parametrize("reentrant", [False, True])
def test_activation_checkpointing_changes_no_gradient(*, reentrant: bool) -> None:
    waveform, mask = padded([16_000, 8_000])
    gradients = []
    for checkpointing in (False, True):
        model = tiny(attention_dropout=0.1, hidden_dropout=0.1, layerdrop=0.3).train()
        if checkpointing:
            model.activation_checkpointing_enable({"use_reentrant": reentrant})
        torch.manual_seed(1)
        model(waveform, attention_mask=mask).last_hidden_state.square().mean().backward()
        gradients.append({name: p.grad for name, p in model.named_parameters()})
    torch.testing.assert_close(gradients[1], gradients[0])


def test_a_dropped_layer_passes_its_input_on_and_every_parameter_is_used() -> None:
    model = tiny(layerdrop=1.0).train()
    output = model(noise(1, 8_000), output_hidden_states=True)
    for hidden_states in output.hidden_states[1:]:
        assert torch.equal(hidden_states, output.hidden_states[0])
    output.last_hidden_state.sum().backward()
    assert all(parameter.grad is not None for parameter in model.parameters())
    assert not torch.equal(
        *model.eval()(noise(1, 8_000), output_hidden_states=True).hidden_states[:2]
    )


@pytest.mark.parametrize(
    "option",
    ["hidden_dropout", "attention_dropout", "activation_dropout", "input_dropout", "layerdrop"],
)
def test_each_dropout_acts_in_training_only(option: str) -> None:
    model, waveform = tiny(**{option: 0.5}), noise(1, 8_000)
    torch.manual_seed(0)
    with torch.no_grad():
        assert torch.equal(model(waveform)[0], model(waveform)[0])
        model.train()
        outputs = [model(waveform)[0] for _ in range(8)]
    assert any(not torch.equal(outputs[0], output) for output in outputs[1:])


@pytest.mark.parametrize("option", ["gated_position_bias", "deep_norm", "conv_bias"])
def test_each_switch_of_the_architecture_acts(option: str) -> None:
    default = getattr(BeatsConfig(), option)
    model = tiny(**{option: not default})
    keys = tiny().state_dict().keys() ^ model.state_dict().keys()
    part = {"gated_position_bias": "gate", "deep_norm": "", "conv_bias": "convolution.bias"}[option]
    assert bool(keys) == bool(part)
    assert all(part in key for key in keys)
    waveform, mask = padded([8_000, 6_000])
    outputs = [m(waveform, attention_mask=mask)[0] for m in (tiny(), model)]
    assert not torch.allclose(*outputs, atol=1e-3)
    alone = model(waveform[1:, :6_000])[0]
    torch.testing.assert_close(outputs[1][1:, : alone.shape[1]], alone, rtol=0, atol=1e-5)


def test_a_small_model_learns_from_scratch() -> None:
    generator = torch.Generator().manual_seed(0)
    torch.manual_seed(0)
    model = tiny(BeatsForAudioClassification, num_labels=4).train()
    optimizer = torch.optim.AdamW(model.parameters(), lr=5e-3)
    time = torch.arange(3_000) / 16_000
    losses = []
    for _ in range(60):
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
    assert sum(losses[-10:]) / 10 < 0.6 * guessing


def test_new_weights_have_the_size_deep_norm_prescribes() -> None:
    model = tiny(hidden_size=128, intermediate_size=512, num_hidden_layers=8)
    gain = (8 * 8) ** -0.25
    layer = model.layers[3]
    for weight, factor in (
        (layer.attention.q_proj.weight, 1.0),
        (layer.attention.v_proj.weight, gain),
        (layer.fc2.weight, gain),
    ):
        expected = factor * (2 / sum(weight.shape)) ** 0.5
        assert weight.std().item() == pytest.approx(expected, rel=0.05)
    weight = model.position.weight()
    torch.testing.assert_close(weight, model.position.direction)  # the norm is its own
    assert (layer.attention.gate_scale == 1).all()


# --- Saving -----------------------------------------------------------------------------------


@pytest.mark.parametrize("model_class", [BeatsModel, BeatsForAudioClassification])
def test_a_reloaded_model_is_the_same(tmp_path: Path, model_class: type) -> None:
    model = tiny(model_class)
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.normal_()  # no value that an initialisation could hit by chance
    model.save_pretrained(tmp_path)
    reloaded = model_class.from_pretrained(tmp_path)
    for kind in ("named_parameters", "named_buffers"):
        old, new = (list(getattr(m, kind)()) for m in (model, reloaded))
        assert [name for name, _ in old] == [name for name, _ in new]
        for (name, before), (_, after) in zip(old, new, strict=True):
            assert torch.equal(before, after), name
            assert before.requires_grad == after.requires_grad, name
    waveform = noise(1, 8_000)
    with torch.no_grad():
        assert torch.equal(model(waveform)[0], reloaded(waveform)[0])


def test_a_head_takes_over_a_bare_encoder_and_the_other_way_round(tmp_path: Path) -> None:
    encoder = tiny()
    encoder.save_pretrained(tmp_path / "encoder")
    classifier = BeatsForAudioClassification.from_pretrained(tmp_path / "encoder", num_labels=3)
    classifier.save_pretrained(tmp_path / "classifier")
    again = BeatsModel.from_pretrained(tmp_path / "classifier")
    for name, tensor in encoder.state_dict().items():
        assert torch.equal(tensor, again.state_dict()[name]), name


def test_a_saved_folder_carries_the_code_it_needs(tmp_path: Path) -> None:
    tiny().save_pretrained(tmp_path)
    config = json.loads((tmp_path / "config.json").read_text())
    assert config["auto_map"]["AutoModel"] == "modeling_beats.BeatsModel"
    assert {"modeling_beats.py", "spectrogram.py", "configuration_asd.py"} <= {
        path.name for path in tmp_path.iterdir()
    }
    assert not (tmp_path / "convert_original.py").exists()

"""What all encoders do alike: inputs, padding, layers, saving."""

import json
import math
from pathlib import Path

import pytest
import torch
from torch import Tensor
from transformers import PreTrainedModel

from modeling import AsdModel
from tests.modeling.encoders import ATTENTION, CLASSES, authors, noise, padded, recorded, tiny

BINS = {"beats": 128, "eat": 128, "fisher": 201}
every_encoder = pytest.mark.parametrize("name", CLASSES)


# --- The authors' weights ---------------------------------------------------------------------


@pytest.mark.parametrize(
    ("name", "head", "features", "options"),
    [
        ("beats", True, "fbank", {}),
        ("eat", True, "fbank_var", {}),
        ("fisher", False, "spec_1000", {"sampling_rate": 1_000}),
    ],
)
def test_every_parameter_but_the_key_bias_matters(
    name: str, head: bool, features: str, options: dict
) -> None:
    model = authors(name, head=head, **options).double()
    spectrogram = recorded(name)[features].double()
    spectrogram = spectrogram.view(-1, *spectrogram.shape[-2:])[:1, :64]

    def answer() -> Tensor:
        output = model(input_features=spectrogram)
        return output.logits if head else output.pooler_output

    def moved_by(tensor: Tensor) -> float:
        kept = tensor.clone()
        # Not a factor: the direction of BEATs' position embedding has no length.
        tensor.add_(noise(*tensor.shape).double())
        moved = (answer() - before).abs().max().item()
        tensor.copy_(kept)
        return moved

    with torch.no_grad():
        before = answer()
        for path, tensor in [*model.named_parameters(), *model.named_buffers()]:
            if path.endswith("k_proj.bias"):  # the softmax does not see it
                assert moved_by(tensor) < 1e-12, path
                continue
            assert moved_by(tensor) > 1e-6, path
            if path.endswith("qkv.bias"):  # nor the part of the keys in this one
                query, key, _ = tensor.chunk(3)
                assert moved_by(key) < 1e-12, path
                assert moved_by(query) > 1e-6, path


@pytest.mark.parametrize(
    ("name", "clip"), [("beats", "wav_long"), ("eat", "wav"), ("fisher", "wav_16000")]
)
def test_half_precision_stays_near_float32(name: str, clip: str) -> None:
    model = authors(name)
    waveform = torch.atleast_2d(recorded(name)[clip])
    with torch.no_grad():
        exact, spectrogram = model(waveform).last_hidden_state, model.spectrogram(waveform)
        with torch.autocast("cpu", dtype=torch.bfloat16):
            autocast = model(waveform).last_hidden_state
            assert torch.equal(model.spectrogram(waveform), spectrogram)
        half = model.to(torch.bfloat16)(waveform).last_hidden_state
    assert half.dtype == torch.bfloat16
    # Outputs have RMS 1; bfloat16 keeps about three digits through the fixtures' few layers.
    for output in (autocast, half):
        assert (output.float() - exact).square().mean().sqrt() < 0.03


# --- Padding ----------------------------------------------------------------------------------


@ATTENTION
@pytest.mark.parametrize(
    ("dtype", "atol"),
    # bfloat16 keeps 8 bits: sums of another order differ by a few units in the last place.
    [(torch.float32, 1e-5), (torch.bfloat16, 0.05)],
    ids=["float32", "bfloat16"],
)
@pytest.mark.parametrize(
    ("name", "options", "rate"),
    [
        ("beats", {}, {}),
        ("eat", {}, {}),
        ("eat", {"target_length": 160}, {}),
        ("fisher", {"flatten": "freq"}, {"sampling_rate": 16_000}),
        ("fisher", {"flatten": "time"}, {"sampling_rate": 16_000}),
        ("fisher", {"flatten": "freq"}, {"sampling_rate": 44_100}),
        ("fisher", {"flatten": "time"}, {"sampling_rate": 44_100}),
    ],
    ids=str,
)
def test_a_clip_is_the_same_alone_and_beside_longer_clips(
    name: str, options: dict, rate: dict, dtype: torch.dtype, atol: float, attention: str
) -> None:
    model = authors(name, attention=attention, **options).to(dtype)
    lengths = [32_000, 2_800, 9_999, 30_400, 5_359]  # one patch, and a sample less than two
    if name == "eat":
        lengths += [400, 2_799]  # a part of a patch is enough
    if rate == {"sampling_rate": 44_100}:
        one, two = (model.log_stft.num_samples(16 * patches, 44_100) for patches in (1, 2))
        lengths = [one, 88_200, two - 1, 83_790]
    waveform, mask = padded(lengths, filler=math.nan)  # what is behind a clip is never read
    with torch.no_grad():
        together = model(waveform, attention_mask=mask, output_hidden_states=True, **rate)
        patch_mask = model.patch_mask(mask, **rate)
        for row, length in enumerate(lengths):
            alone = model(waveform[row : row + 1, :length], output_hidden_states=True, **rate)
            assert patch_mask[row].sum() == math.prod(model.patch_grid(length, **rate))
            for ours, expected in zip(together.hidden_states, alone.hidden_states, strict=True):
                classes, patches = model.split(ours[row : row + 1])
                kept = classes, patches[:, patch_mask[row]]
                torch.testing.assert_close(kept, model.split(expected), rtol=0, atol=atol)
        assert torch.isfinite(together.last_hidden_state).all()


@pytest.mark.parametrize("name", ["beats", "eat"])
def test_logits_are_the_same_alone_and_beside_longer_clips(name: str) -> None:
    lengths = [3_000, 32_000]
    waveform, mask = padded(lengths)
    model = authors(name, head=True)
    with torch.no_grad():
        together = model(waveform, attention_mask=mask).logits
        for row, length in enumerate(lengths):
            alone = model(waveform[row : row + 1, :length]).logits
            torch.testing.assert_close(together[row], alone[0], rtol=0, atol=1e-5)


@every_encoder
@pytest.mark.parametrize("dtype", [torch.long, torch.float32])
def test_a_mask_of_ones_is_no_mask(name: str, dtype: torch.dtype) -> None:
    model, waveform = authors(name), noise(2, 16_000)
    mask = torch.ones(2, 16_000, dtype=dtype)
    with torch.no_grad():
        masked = model(waveform, attention_mask=mask).last_hidden_state
        assert torch.equal(masked, model(waveform).last_hidden_state)


@every_encoder
def test_eager_attention_returns_weights_that_skip_padding(name: str) -> None:
    model = authors(name, attention="eager")
    waveform, mask = padded([8_000, 16_000])
    attentions = model(waveform, attention_mask=mask, output_attentions=True).attentions
    assert len(attentions) == len(model.layers)
    seen = model.patch_mask(mask) if name == "beats" else model.token_mask(mask)
    if name == "fisher":
        seen = seen.repeat_interleave(4, dim=0)  # a row per sub-band
    for weights in attentions:
        torch.testing.assert_close(weights.sum(dim=-1), torch.ones(weights.shape[:-1]))
        hidden = ~seen[:, None, None].expand_as(weights)
        assert hidden.any()
        assert not weights[hidden].any()


# --- Inputs -----------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("name", "options"),
    [
        ("beats", {}),
        ("eat", {}),
        ("eat", {"target_length": 80}),
        ("fisher", {}),
        ("fisher", {"target_length": 64}),
        ("fisher", {"target_length": 256}),
    ],
    ids=str,
)
def test_features_in_place_of_the_waveform_give_the_same(name: str, options: dict) -> None:
    model = authors(name, **options)
    waveform, mask = padded([8_000, 16_000])
    with torch.no_grad():
        direct = model(waveform, attention_mask=mask).last_hidden_state
        # BEATs' spectrogram needs no mask: it leaves a frame of padding out, whatever it holds.
        features = model.spectrogram(*((waveform,) if name == "beats" else (waveform, mask)))
        indirect = model(input_features=features, attention_mask=mask).last_hidden_state
    assert torch.equal(direct, indirect)


@every_encoder
def test_both_or_neither_input_is_refused(name: str) -> None:
    model = tiny(name)
    encoder = type(model).__name__
    with pytest.raises(ValueError, match=f"{encoder} got neither of input_values and input_feat"):
        model()
    with pytest.raises(ValueError, match=f"{encoder} got both of input_values and input_features"):
        model(noise(1, 4_000), input_features=noise(1, 32, BINS[name]))


@pytest.mark.parametrize(
    ("name", "options", "needed"),
    [
        ("beats", {}, 2_800),
        ("eat", {}, 400),
        ("eat", {"target_length": 64}, 400),
        ("fisher", {}, 2_800),
        ("fisher", {"target_length": 64}, 400),
    ],
    ids=str,
)
def test_a_clip_shorter_than_a_patch_is_refused(name: str, options: dict, needed: int) -> None:
    model = tiny(name, **options)
    refusal = f"of {needed - 1} samples came; one patch needs {needed} "
    with pytest.raises(ValueError, match=f"Clips {refusal}"):
        model(noise(1, needed - 1))
    waveform, mask = padded([needed - 1, 8_000])
    with pytest.raises(ValueError, match=f"A clip {refusal}"):
        model(waveform, attention_mask=mask)


@pytest.mark.parametrize("name", ["beats", "fisher"])
def test_features_shorter_than_a_patch_are_refused(name: str) -> None:
    with pytest.raises(ValueError, match="15 frames; one patch takes 16"):
        tiny(name)(input_features=noise(1, 15, BINS[name]))


@every_encoder
def test_padding_before_sound_is_refused(name: str) -> None:
    mask = torch.ones(2, 8_000)
    mask[1, :1_000] = 0
    with pytest.raises(ValueError, match="Padding belongs at the end"):
        tiny(name)(noise(2, 8_000), attention_mask=mask)


@pytest.mark.parametrize(
    ("name", "options"),
    [("beats", {}), ("eat", {}), ("fisher", {}), ("fisher", {"target_length": 64})],
    ids=str,
)
@pytest.mark.parametrize("shape", [(2, 7_999), (1, 8_000), (8_000,)])
def test_a_mask_of_another_shape_is_refused(name: str, options: dict, shape: tuple) -> None:
    with pytest.raises(ValueError, match="does not fit 2 clips of 8000 samples"):
        tiny(name, **options)(noise(2, 8_000), attention_mask=torch.ones(shape))


@every_encoder
# Two frames less: EAT opens its fourth patch with the one, BEATs fills its third with the other.
@pytest.mark.parametrize("shape", [(2, 7_919), (1, 8_080), (8_080,)])
def test_a_mask_of_another_shape_than_the_features_is_refused(name: str, shape: tuple) -> None:
    features = tiny(name).spectrogram(noise(2, 8_080))
    refusal = f"does not fit 2 clips of {features.shape[1]} frames"
    with pytest.raises(ValueError, match=refusal):
        tiny(name)(input_features=features, attention_mask=torch.ones(shape))


@every_encoder
def test_inputs_without_a_batch_axis_are_refused(name: str) -> None:
    with pytest.raises(ValueError, match="Add the batch axis"):
        tiny(name)(noise(8_000))
    for features in (noise(32, BINS[name]), noise(1, 32, 64)):
        with pytest.raises(ValueError, match=rf"expected \(batch, frames, {BINS[name]}\)"):
            tiny(name)(input_features=features)


# --- Layers -----------------------------------------------------------------------------------


@every_encoder
def test_clips_are_taken_singly_for_inference_on_a_cpu_only(name: str) -> None:
    layer = tiny(name).layers[0]
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
def test_clips_taken_singly_give_what_the_whole_batch_gives(
    name: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    model = tiny(name)
    waveform, mask = padded([24_000, 24_000, 8_000])

    def states() -> tuple[Tensor, ...]:
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
def test_layer_dropout_keeps_or_drops_a_layer_for_the_whole_batch(name: str) -> None:
    model = tiny(name)
    layer = model.layers[0]
    layer.layerdrop = 1.0
    states = torch.randn(model.embed_patches(model.spectrogram(noise(3, 24_000))).shape)
    shared = (model.position_bias(states.shape[1]),) if name == "beats" else ()
    assert not torch.equal(layer(states, None, *shared), states)  # in evaluation none is dropped
    assert torch.equal(layer.train()(states, None, *shared), states)


# --- Positions of EAT and FISHER --------------------------------------------------------------


@pytest.mark.parametrize("name", ["eat", "fisher"])
def test_a_new_table_holds_sines_and_cosines_of_both_axes(name: str) -> None:
    model = tiny(name)
    time, band = model.embedding.grid
    assert (band, model.embedding.positions.shape) == (8, (1, time * band, 32))
    for place in [(0, 0), (0, 7), (1, 0), (9, 4), (time - 1, 0), (time - 1, 5)]:
        waves = [
            wave(index * 10_000 ** (-k / 8))
            for index in reversed(place)
            for wave in (math.sin, math.cos)
            for k in range(8)
        ]
        row = model.embedding.positions[0, place[0] * band + place[1]]
        torch.testing.assert_close(row, torch.tensor(waves), rtol=0, atol=1e-6)


@pytest.mark.parametrize("name", ["eat", "fisher"])
def test_positions_are_saved_and_never_trained(name: str, tmp_path: Path) -> None:
    model = tiny(name).train()
    assert "embedding.positions" in model.state_dict()
    assert not [key for key, _ in model.named_parameters() if "position" in key]
    before = model.embedding.positions.clone()
    optimizer = torch.optim.SGD(model.parameters(), lr=1.0, weight_decay=0.1)
    model(noise(1, 8_000)).last_hidden_state.sin().sum().backward()
    optimizer.step()
    assert torch.equal(model.embedding.positions, before)
    model.embedding.positions.mul_(2)
    model.save_pretrained(tmp_path)
    reloaded = type(model).from_pretrained(tmp_path)
    assert torch.equal(reloaded.embedding.positions, 2 * before)
    assert not reloaded.embedding.positions.requires_grad


# --- Saving -----------------------------------------------------------------------------------


@pytest.mark.parametrize("head", [False, True])
@pytest.mark.parametrize(
    ("name", "options"), [("beats", {}), ("eat", {"target_length": 96}), ("fisher", {})]
)
def test_a_reloaded_model_is_the_same(name: str, options: dict, head: bool, tmp_path: Path) -> None:
    model = tiny(name, head=head, **options)
    with torch.no_grad():
        for tensor in [*model.parameters(), *model.buffers()]:
            tensor.normal_()  # no value that an initialisation could hit by chance
    model.save_pretrained(tmp_path)
    reloaded: PreTrainedModel = type(model).from_pretrained(tmp_path)
    for kind in ("named_parameters", "named_buffers"):
        old, new = (list(getattr(m, kind)()) for m in (model, reloaded))
        assert [key for key, _ in old] == [key for key, _ in new]
        for (key, before), (_, after) in zip(old, new, strict=True):
            assert torch.equal(before, after), key
            assert before.requires_grad == after.requires_grad, key
    assert {key: getattr(reloaded.config, key) for key in options} == options
    waveform = noise(1, 8_000)
    with torch.no_grad():
        assert torch.equal(model(waveform)[0], reloaded(waveform)[0])


@every_encoder
def test_a_head_takes_over_a_bare_encoder_and_the_other_way_round(
    name: str, tmp_path: Path
) -> None:
    _, model_class, classifier_class = CLASSES[name]
    encoder = tiny(name)
    encoder.save_pretrained(tmp_path / "encoder")
    classifier = classifier_class.from_pretrained(tmp_path / "encoder", num_labels=3)
    classifier.save_pretrained(tmp_path / "classifier")
    again = model_class.from_pretrained(tmp_path / "classifier")
    for key, tensor in encoder.state_dict().items():
        assert torch.equal(tensor, again.state_dict()[key]), key


@pytest.mark.parametrize(
    ("name", "encoders"), [("beats", {"beats"}), ("eat", {"eat"}), ("fisher", {"eat", "fisher"})]
)
def test_a_saved_folder_carries_the_code_it_needs(
    name: str, encoders: set[str], tmp_path: Path
) -> None:
    model = tiny(name)
    model.save_pretrained(tmp_path)
    config = json.loads((tmp_path / "config.json").read_text())
    assert config["auto_map"]["AutoModel"] == f"modeling_{name}.{type(model).__name__}"
    files = {path.stem for path in tmp_path.glob("*.py")}
    assert {file for file in files if file.startswith("modeling_")} == {
        f"modeling_{encoder}" for encoder in encoders
    }
    assert {"configuration_asd", "encoder_inputs", "encoder_layer", "spectrogram"} <= files
    assert not [file for file in files if file.startswith(("convert_", "original_"))]


@pytest.mark.parametrize("other", CLASSES)
@every_encoder
def test_a_checkpoint_of_another_encoder_is_refused(name, other, tmp_path) -> None:
    tiny(other).save_pretrained(tmp_path)
    if name == other:
        assert CLASSES[name][1].from_pretrained(tmp_path)
        return
    with pytest.raises(ValueError, match=f"'nearfar_{other}', but .* 'nearfar_{name}'"):
        CLASSES[name][1].from_pretrained(tmp_path)
    with pytest.raises(ValueError, match=f"'nearfar_{other}'"):
        AsdModel.from_pretrained(tmp_path)

import copy
import json
import math
from collections.abc import Callable
from pathlib import Path

import pytest
import torch
import torch.nn.functional as F
from huggingface_hub.errors import StrictDataclassClassValidationError
from safetensors.torch import load_file
from torch import Tensor

from modeling.configuration_asd import EatConfig
from modeling.convert_original import load_original
from modeling.modeling_eat import EatForAudioClassification, EatModel, sine_positions
from tests.tiny import TINY_EAT

FIXTURES = Path(__file__).parents[1] / "fixtures" / "eat"
PARITY = Path(__file__).resolve().parents[3] / "shared" / "parity" / "eat"
TINY = {name: value for name, value in TINY_EAT.items() if name != "model_type"}
ATTENTION = pytest.mark.parametrize("attention", ["sdpa", "eager"])
FEATURES = {"rtol": 0, "atol": 3e-5}  # float32 noise of the encoder is 3e-6, at peaks of 3
LOGITS = {"rtol": 0, "atol": 1e-4}


@pytest.fixture(scope="module")
def io() -> dict[str, Tensor]:
    return load_file(FIXTURES / "io.safetensors")


@pytest.fixture(scope="module")
def authors() -> Callable[..., EatModel | EatForAudioClassification]:
    """Return a function that loads a fixture's model, the classifier if `head`."""
    loaded = {
        "encoder": load_original(FIXTURES / "pretrained_fairseq.pt"),
        "fairseq": load_original(FIXTURES / "finetuned_fairseq.pt", head=True),
        "port": load_original(FIXTURES / "hf_finetune", head=True),
    }

    def load(name: str = "encoder", *, attention: str = "sdpa", target_length: int | None = None):
        model = copy.deepcopy(loaded[name])
        model.set_attn_implementation(attention)
        model.config.target_length = target_length
        return model

    return load


def tiny(model_class: type = EatModel, **options) -> EatModel | EatForAudioClassification:
    with torch.random.fork_rng():
        torch.manual_seed(0)
        return model_class(EatConfig(**(TINY | options))).eval()


def noise(*shape: int, seed: int = 0) -> Tensor:
    return 0.1 * torch.randn(shape, generator=torch.Generator().manual_seed(seed))


def padded(lengths: list[int], *, filler: float = 0.0) -> tuple[Tensor, Tensor]:
    """Return clips of these lengths in one batch, and their attention mask."""
    waveform = torch.full((len(lengths), max(lengths)), filler)
    mask = torch.zeros(waveform.shape, dtype=torch.long)
    for row, length in enumerate(lengths):
        waveform[row, :length] = 0.05 + noise(length, seed=row)  # no clip has a mean of 0
        mask[row, :length] = 1
    return waveform, mask


# --- Equality with the authors' code ---------------------------------------------------------


@ATTENTION
def test_every_stage_equals_the_authors(io, authors, attention: str) -> None:
    model = authors(attention=attention)
    with torch.no_grad():
        torch.testing.assert_close(
            model.spectrogram(io["wav"][:1]), io["fbank_var"][:, 0], rtol=0, atol=1e-3
        )
        output = model(input_features=io["fbank_var"][:, 0], output_hidden_states=True)
    torch.testing.assert_close(torch.stack(output.hidden_states[:-1]), io["layers"], **FEATURES)
    torch.testing.assert_close(output.last_hidden_state, io["features_var"][:1], **FEATURES)
    assert torch.equal(output.hidden_states[-1], output.last_hidden_state)


@ATTENTION
def test_waveforms_give_the_authors_features(io, authors, attention: str) -> None:
    model = authors(attention=attention)
    with torch.no_grad():
        output = model(io["wav"]).last_hidden_state
        torch.testing.assert_close(output, io["features_var"], rtol=0, atol=5e-5)
        for row in range(2):
            alone = model(io["wav"][row : row + 1]).last_hidden_state
            torch.testing.assert_close(alone, io["features_var"][row : row + 1], rtol=0, atol=5e-5)


@ATTENTION
def test_a_padded_batch_equals_the_authors_clip_by_clip(io, authors, attention: str) -> None:
    model = authors(attention=attention)
    waveform, mask = F.pad(io["wav"], (0, 9_000), value=math.nan), torch.zeros(3, 41_000)
    waveform = torch.cat([waveform, noise(1, 41_000)])  # beside a longer clip
    mask[:2, :32_000] = 1
    mask[2] = 1
    with torch.no_grad():
        output = model(waveform, attention_mask=mask).last_hidden_state
    torch.testing.assert_close(output[:2, :105], io["features_var"], rtol=0, atol=5e-5)
    assert model.patch_mask(mask).sum(dim=1).tolist() == [104, 104, 128]


@ATTENTION
def test_clips_filled_up_to_the_authors_length_give_their_features(
    io, authors, attention: str
) -> None:
    model = authors(attention=attention, target_length=1024)
    with torch.no_grad():
        features = model.spectrogram(io["wav"])
        output = model(io["wav"]).last_hidden_state
    assert features.shape == (2, 1024, 128)
    silence = torch.full_like(features[:, 208:], 4.268 / (2 * 4.569))
    torch.testing.assert_close(features[:, 208:], silence, rtol=0, atol=1e-6)
    assert output.shape == (2, 513, 48)
    torch.testing.assert_close(output[:, ::32], io["features"], rtol=0, atol=5e-5)


@ATTENTION
@pytest.mark.parametrize(
    ("name", "target_length", "expected"),
    [
        ("fairseq", None, "logits_var"),
        ("fairseq", 1024, "logits"),
        ("port", None, "logits_var"),
        ("port", 1024, "hf_logits"),
    ],
)
def test_logits_equal_the_authors(
    io, authors, attention: str, name: str, target_length: int | None, expected: str
) -> None:
    model = authors(name, attention=attention, target_length=target_length)
    with torch.no_grad():
        logits = model(io["wav"]).logits
    torch.testing.assert_close(logits, io[expected], **LOGITS)


def test_the_heads_norm_has_the_epsilon_of_where_it_was_trained(io, authors) -> None:
    fairseq, port = (authors(name, target_length=1024).double() for name in ("fairseq", "port"))
    assert (fairseq.config.head_norm_eps, port.config.head_norm_eps) == (1e-6, 1e-5)
    with torch.no_grad():
        for own, other, logits in ((fairseq, port, "logits"), (port, fairseq, "hf_logits")):
            own_error, other_error = (
                (model(io["wav"]).logits - io[logits]).abs().max() for model in (own, other)
            )
            assert own_error < 0.5 * other_error  # 3e-6 and 2e-5


def test_another_position_table_is_read_not_recomputed(io, authors, tmp_path: Path) -> None:
    model = authors()
    with torch.no_grad():
        model.embedding.positions[:, :104] = io["alt_positions"]  # as many as the clip has patches
    model.save_pretrained(tmp_path)
    reloaded = EatModel.from_pretrained(tmp_path).eval()
    assert torch.equal(reloaded.embedding.positions, model.embedding.positions)
    with torch.no_grad():
        output = reloaded(io["wav"][:1]).last_hidden_state
    torch.testing.assert_close(output, io["alt_positions_features_var"], rtol=0, atol=5e-5)


@ATTENTION
def test_all_that_the_authors_give_out_is_equal(attention: str) -> None:
    """The fixtures here are trimmed; these are not."""
    if not PARITY.is_dir():
        pytest.skip("the full parity fixtures are not beside the repository")
    io = load_file(PARITY / "io.safetensors")
    for name in ("pretrained_fairseq.pt", "hf_pretrain"):
        model = load_original(PARITY / name)
        model.set_attn_implementation(attention)
        with torch.no_grad():
            output = model(input_features=io["fbank_var"][:, 0], output_hidden_states=True)
            torch.testing.assert_close(torch.stack(output.hidden_states), io["layers"], **FEATURES)
            torch.testing.assert_close(output[0], io["hf_features_var"], **FEATURES)
            model.config.target_length = 1024
            output = model(io["wav"]).last_hidden_state
            torch.testing.assert_close(output, io["features"], rtol=0, atol=5e-5)
            output = model.double()(io["wav"]).last_hidden_state
            torch.testing.assert_close(output, io["features_f64"], rtol=0, atol=5e-5)


def test_every_parameter_but_the_key_bias_matters(io, authors) -> None:
    model = authors("fairseq").double()
    features, size = io["fbank_var"][:, 0].double(), model.config.hidden_size
    with torch.no_grad():
        before = model(input_features=features).logits

        def moved_by(tensor: Tensor) -> float:
            kept = tensor.clone()
            tensor.add_(noise(*tensor.shape).double())
            moved = (model(input_features=features).logits - before).abs().max().item()
            tensor.copy_(kept)
            return moved

        for name, parameter in [*model.named_parameters(), *model.named_buffers()]:
            assert moved_by(parameter) > 1e-6, name
            if name.endswith("qkv.bias"):  # the softmax does not see that of the keys
                assert moved_by(parameter[size : 2 * size]) < 1e-12, name
                assert moved_by(parameter[: 2 * size]) > 1e-6, name


@pytest.mark.parametrize(
    ("options", "trainable", "positions"),
    [
        ({}, 85_254_144, 4_718_592),
        (
            {
                "hidden_size": 1024,
                "num_hidden_layers": 24,
                "num_attention_heads": 16,
                "intermediate_size": 4096,
            },
            302_575_616,
            6_291_456,
        ),
    ],
    ids=["base", "large"],
)
def test_the_released_sizes_have_the_authors_parameter_counts(
    options: dict, trainable: int, positions: int
) -> None:
    with torch.device("meta"):
        model = EatModel(EatConfig(**options))
    assert sum(p.numel() for p in model.parameters() if p.requires_grad) == trainable
    assert model.num_parameters() == trainable
    assert sum(buffer.numel() for buffer in model.buffers()) == positions


# --- Positions --------------------------------------------------------------------------------


def test_a_new_table_is_the_authors(authors) -> None:
    table = torch.from_numpy(sine_positions(72, 8, 48))
    # Theirs is computed in float32: angles up to 72 are rounded to 4e-6.
    torch.testing.assert_close(table, authors().embedding.positions[0], rtol=0, atol=5e-6)


def test_positions_follow_the_definition() -> None:
    positions = tiny().embedding.positions
    assert positions.shape == (1, 16 * 8, 32)
    for time, band in [(0, 0), (0, 7), (15, 0), (9, 4)]:
        row = positions[0, time * 8 + band]
        expected = [
            wave(index * 10_000 ** (-k / 8))
            for index in (band, time)
            for wave in (math.sin, math.cos)
            for k in range(8)
        ]
        torch.testing.assert_close(row, torch.tensor(expected), rtol=0, atol=1e-6)


def test_positions_are_saved_and_never_trained(tmp_path: Path) -> None:
    model = tiny().train()
    assert "embedding.positions" in model.state_dict()
    before = model.embedding.positions.clone()
    optimizer = torch.optim.SGD(model.parameters(), lr=1.0, weight_decay=0.1)
    model(noise(1, 8_000)).last_hidden_state.sum().backward()
    optimizer.step()
    assert torch.equal(model.embedding.positions, before)
    model.embedding.positions.mul_(2)
    model.save_pretrained(tmp_path)
    reloaded = EatModel.from_pretrained(tmp_path)
    assert torch.equal(reloaded.embedding.positions, 2 * before)
    assert not reloaded.embedding.positions.requires_grad


def test_the_longest_clip_fills_the_table_and_a_longer_one_is_refused() -> None:
    model = tiny()  # 16 patches of 16 frames
    longest = model.log_mel.num_samples(256)
    assert longest == 41_200
    output = model(noise(1, longest + 159)).last_hidden_state  # 256 frames still
    assert output.shape == (1, 1 + 16 * 8, 32)
    with pytest.raises(
        ValueError, match=r"272 frames came; the position table ends after 256 \(2\.6 s\)"
    ):
        model(noise(1, longest + 160))
    model.config.target_length = 256
    assert model(noise(1, longest + 50_000)).last_hidden_state.shape == output.shape


# --- Padding ----------------------------------------------------------------------------------


@ATTENTION
@pytest.mark.parametrize("target_length", [None, 160])
@pytest.mark.parametrize(
    ("dtype", "atol"),
    # bfloat16 keeps 8 bits: sums of another order differ by a few units in the last place.
    [(torch.float32, 1e-5), (torch.bfloat16, 0.05)],
    ids=["float32", "bfloat16"],
)
def test_a_clip_is_the_same_alone_and_beside_longer_clips(
    authors, attention: str, target_length: int | None, dtype: torch.dtype, atol: float
) -> None:
    lengths = [400, 2_799, 32_000, 9_999, 30_400]
    waveform, mask = padded(lengths, filler=math.nan)  # what is behind a clip is never read
    model = authors(attention=attention, target_length=target_length).to(dtype)
    with torch.no_grad():
        together = model(waveform, attention_mask=mask, output_hidden_states=True).hidden_states
        token_mask = model.token_mask(mask)
        for row, length in enumerate(lengths):
            alone = model(waveform[row : row + 1, :length], output_hidden_states=True)
            assert token_mask[row].sum() == 1 + math.prod(model.patch_grid(length))
            for ours, expected in zip(together, alone.hidden_states, strict=True):
                torch.testing.assert_close(
                    ours[row, token_mask[row]], expected[0], rtol=0, atol=atol
                )
            assert torch.isfinite(together[-1][row]).all()


def test_logits_are_the_same_alone_and_beside_longer_clips(authors) -> None:
    lengths = [3_000, 32_000]
    waveform, mask = padded(lengths)
    model = authors("fairseq")
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


@pytest.mark.parametrize("target_length", [None, 64])
def test_the_patch_grid_counts_the_patches(target_length: int | None) -> None:
    model = tiny(target_length=target_length)
    for num_samples in (400, 2_800, 2_960, 5_360, 32_000):
        time, band = model.patch_grid(num_samples)
        assert model(noise(1, num_samples))[0].shape[1] == model.num_class_tokens + time * band
        assert time == (target_length or 16 * time) / 16
    if target_length is None:
        assert model.patch_grid(2_800) == (1, 8)
        assert model.patch_grid(2_959) == (1, 8)
        assert model.patch_grid(2_960) == (2, 8)  # a 17th frame opens a second patch
        assert model.patch_grid(160_000) == (63, 8)
    assert model.patch_grid(399) == (0, 8)


def test_a_last_patch_that_is_not_full_counts_as_sound() -> None:
    _, mask = padded([400, 2_959, 2_960, 8_000])
    patches = tiny().patch_mask(mask).unflatten(1, (3, 8))
    assert patches.all(dim=2).sum(dim=1).tolist() == [1, 1, 2, 3]
    assert torch.equal(patches.all(dim=2), patches.any(dim=2))


def test_with_a_target_length_padding_counts_as_sound_for_every_clip() -> None:
    model = tiny(target_length=96)
    _, mask = padded([400, 8_000, 32_000])
    assert model.patch_mask(mask).shape == (3, 6 * 8)
    assert model.patch_mask(mask).all()


def test_patches_run_through_time_slowly_and_through_bands_fast() -> None:
    model = tiny()
    features = torch.zeros(1, 64, 128)
    with torch.no_grad():
        still = model.embed_patches(features)
        features[0, 32:48, 48:64] = 1.0  # time patch 2, band 3
        moved = (model.embed_patches(features) - still).abs().amax(dim=-1)[0] > 1e-6
    assert moved.nonzero().flatten().tolist() == [1 + 2 * 8 + 3]


def test_split_takes_the_class_token_from_the_front() -> None:
    hidden_states = noise(2, 1 + 24, 32)
    class_tokens, patches = tiny().split(hidden_states)
    assert torch.equal(class_tokens, hidden_states[:, 0:1])
    assert torch.equal(patches, hidden_states[:, 1:])


# --- Inputs -----------------------------------------------------------------------------------


def test_a_constant_added_to_a_clip_changes_nothing(authors) -> None:
    waveform, mask = padded([8_000, 16_000])
    offset = torch.tensor([[0.1], [-0.3]])
    with torch.no_grad():
        plain, shifted = (
            authors()(waveform + shift * mask, attention_mask=mask).last_hidden_state
            for shift in (0.0, offset)
        )
    token_mask = authors().token_mask(mask)
    torch.testing.assert_close(plain[token_mask], shifted[token_mask], rtol=0, atol=1e-4)


@pytest.mark.parametrize("target_length", [None, 80])
def test_features_in_place_of_the_waveform_give_the_same(
    authors, target_length: int | None
) -> None:
    model = authors(target_length=target_length)
    waveform, mask = padded([8_000, 16_000])
    with torch.no_grad():
        direct = model(waveform, attention_mask=mask).last_hidden_state
        features = model.spectrogram(waveform, mask)
        indirect = model(input_features=features, attention_mask=mask).last_hidden_state
    assert torch.equal(direct, indirect)


def test_stepping_through_the_layers_by_hand_gives_the_same(authors) -> None:
    model = authors()
    waveform, mask = padded([8_000, 16_000])
    with torch.no_grad():
        output = model(waveform, attention_mask=mask, output_hidden_states=True)
        token_mask = model.token_mask(mask)
        stepped = [model.embed_patches(model.spectrogram(waveform, mask))]
        for layer in model.layers:
            stepped.append(layer(stepped[-1], token_mask))
    for ours, expected in zip(stepped, output.hidden_states, strict=True):
        assert torch.equal(ours, expected)
    assert torch.equal(stepped[-1], output.last_hidden_state)


def test_eager_attention_returns_weights_that_skip_padding(authors) -> None:
    model = authors(attention="eager")
    waveform, mask = padded([8_000, 16_000])
    attentions = model(waveform, attention_mask=mask, output_attentions=True).attentions
    assert len(attentions) == 2
    for weights in attentions:
        torch.testing.assert_close(weights.sum(dim=-1), torch.ones(weights.shape[:-1]))
        hidden = ~model.token_mask(mask)[:, None, None].expand_as(weights)
        assert hidden.any()
        assert not weights[hidden].any()


def test_both_or_neither_input_is_refused() -> None:
    model = tiny()
    with pytest.raises(ValueError, match="EatModel got neither of input_values and input_features"):
        model()
    with pytest.raises(ValueError, match="EatModel got both of input_values and input_features"):
        model(noise(1, 4_000), input_features=noise(1, 32, 128))


def test_a_clip_shorter_than_a_frame_is_refused() -> None:
    model = tiny()
    with pytest.raises(ValueError, match="399 samples came; one patch needs 400"):
        model(noise(1, 399))
    waveform, mask = padded([399, 8_000])
    with pytest.raises(ValueError, match="A clip of 399 samples came; one patch needs 400"):
        model(waveform, attention_mask=mask)


@pytest.mark.parametrize("frames", [0, 15, 33])
def test_features_of_no_whole_number_of_patches_are_refused(frames: int) -> None:
    with pytest.raises(ValueError, match=f"{frames} frames, which is not a multiple of 16"):
        tiny()(input_features=torch.zeros(1, frames, 128))


def test_padding_before_sound_is_refused() -> None:
    mask = torch.ones(2, 8_000)
    mask[1, :1_000] = 0
    with pytest.raises(ValueError, match="Padding belongs at the end"):
        tiny()(noise(2, 8_000), attention_mask=mask)


@pytest.mark.parametrize("shape", [(2, 4_000), (1, 8_000), (8_000,)])
def test_a_mask_of_another_shape_is_refused(shape: tuple[int, ...]) -> None:
    model, mask = tiny(), torch.ones(shape)
    with pytest.raises(ValueError, match="does not fit 2 clips of 8000 samples"):
        model(noise(2, 8_000), attention_mask=mask)
    with pytest.raises(ValueError, match="does not fit 2 clips of 48 frames"):
        model(input_features=noise(2, 48, 128), attention_mask=mask)


def test_inputs_without_a_batch_axis_are_refused() -> None:
    with pytest.raises(ValueError, match="Add the batch axis"):
        tiny()(noise(8_000))
    with pytest.raises(ValueError, match=r"expected \(batch, frames, 128\)"):
        tiny()(input_features=noise(1, 32, 64))


@pytest.mark.parametrize("options", [{"num_attention_heads": 5}, {"hidden_size": 30}])
def test_a_hidden_size_that_cannot_be_shared_is_refused(options: dict) -> None:
    with pytest.raises(StrictDataclassClassValidationError, match="is not a multiple of"):
        EatConfig(**(TINY | options))


@pytest.mark.parametrize("target_length", [0, -16, 1000, 272])
def test_a_target_length_that_does_not_fit_is_refused(target_length: int) -> None:
    with pytest.raises(StrictDataclassClassValidationError, match="from 16 to 256 frames"):
        EatConfig(**TINY, target_length=target_length)


# --- Precision and compilation ----------------------------------------------------------------


def test_half_precision_stays_near_float32(authors, io) -> None:
    model, waveform = authors(), io["wav"]
    with torch.no_grad():
        exact = model(waveform).last_hidden_state
        with torch.autocast("cpu", dtype=torch.bfloat16):
            autocast = model(waveform).last_hidden_state
            assert torch.equal(model.spectrogram(waveform), authors().spectrogram(waveform))
        half = model.to(torch.bfloat16)(waveform).last_hidden_state
    assert half.dtype == torch.bfloat16
    # Outputs have RMS 1; bfloat16 keeps about three digits through two layers.
    for output in (autocast, half):
        assert (output.float() - exact).square().mean().sqrt() < 0.03


@pytest.mark.parametrize("target_length", [None, 64])
def test_it_compiles_as_one_graph(target_length: int | None) -> None:
    model = tiny(target_length=target_length)
    waveform, mask = padded([8_000, 6_000])
    compiled = torch.compile(model, backend="eager", fullgraph=True)
    with torch.no_grad():
        expected = model(waveform, attention_mask=mask, output_hidden_states=True)
        output = compiled(waveform, attention_mask=mask, output_hidden_states=True)
    torch.testing.assert_close(output.hidden_states, expected.hidden_states)


# --- Training ---------------------------------------------------------------------------------


@ATTENTION
def test_a_gradient_reaches_every_parameter(attention: str) -> None:
    model = tiny(EatForAudioClassification, num_labels=3).double().train()
    model.set_attn_implementation(attention)
    waveform, mask = padded([16_000, 8_000])
    labels = torch.tensor([[1.0, 0.0, 0.0], [0.0, 1.0, 1.0]])
    model(waveform, attention_mask=mask, labels=labels).loss.backward()
    for name, parameter in model.named_parameters():
        assert torch.isfinite(parameter.grad).all(), name
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


def test_a_small_model_learns_from_scratch() -> None:
    generator = torch.Generator().manual_seed(0)
    torch.manual_seed(0)
    model = tiny(EatForAudioClassification, num_labels=4).train()
    optimizer = torch.optim.AdamW(model.parameters(), lr=5e-3)
    time = torch.arange(3_000) / 16_000
    losses = []
    for _ in range(120):
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


# --- Saving -----------------------------------------------------------------------------------


@pytest.mark.parametrize("model_class", [EatModel, EatForAudioClassification])
def test_a_reloaded_model_is_the_same(tmp_path: Path, model_class: type) -> None:
    model = tiny(model_class, target_length=96)
    with torch.no_grad():
        for tensor in [*model.parameters(), *model.buffers()]:
            tensor.normal_()  # no value that an initialisation could hit by chance
    model.save_pretrained(tmp_path)
    reloaded = model_class.from_pretrained(tmp_path)
    for kind in ("named_parameters", "named_buffers"):
        old, new = (list(getattr(m, kind)()) for m in (model, reloaded))
        assert [name for name, _ in old] == [name for name, _ in new]
        for (name, before), (_, after) in zip(old, new, strict=True):
            assert torch.equal(before, after), name
            assert before.requires_grad == after.requires_grad, name
    assert reloaded.config.target_length == 96
    waveform = noise(1, 8_000)
    with torch.no_grad():
        assert torch.equal(model(waveform)[0], reloaded(waveform)[0])


def test_a_head_takes_over_a_bare_encoder_and_the_other_way_round(tmp_path: Path) -> None:
    encoder = tiny()
    encoder.save_pretrained(tmp_path / "encoder")
    classifier = EatForAudioClassification.from_pretrained(tmp_path / "encoder", num_labels=3)
    classifier.save_pretrained(tmp_path / "classifier")
    again = EatModel.from_pretrained(tmp_path / "classifier")
    for name, tensor in encoder.state_dict().items():
        assert torch.equal(tensor, again.state_dict()[name]), name


def test_a_saved_folder_carries_the_code_it_needs(tmp_path: Path) -> None:
    tiny().save_pretrained(tmp_path)
    config = json.loads((tmp_path / "config.json").read_text())
    assert config["auto_map"]["AutoModel"] == "modeling_eat.EatModel"
    files = {path.name for path in tmp_path.iterdir()}
    assert {"modeling_eat.py", "spectrogram.py", "configuration_asd.py"} <= files
    assert "encoder_inputs.py" in files
    assert not {"convert_original.py", "convert_eat.py", "modeling_beats.py"} & files

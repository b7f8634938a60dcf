import math
from pathlib import Path

import pytest
import torch
import torch.nn.functional as F
from huggingface_hub.errors import StrictDataclassClassValidationError
from safetensors.torch import load_file
from torch import Tensor

from modeling.configuration_asd import EatConfig
from modeling.convert_original import load_original
from modeling.modeling_eat import EatModel, sine_positions
from tests.modeling.encoders import ATTENTION, authors, noise, padded, recorded, tiny, tiny_config

PARITY = Path(__file__).resolve().parents[3] / "shared" / "parity" / "eat"
FAIRSEQ, PORT = "finetuned_fairseq.pt", "hf_finetune"
FEATURES = {"rtol": 0, "atol": 3e-5}  # float32 noise of the encoder is 3e-6, at peaks of 3
LOGITS = {"rtol": 0, "atol": 1e-4}


@pytest.fixture(scope="module")
def io() -> dict[str, Tensor]:
    return recorded("eat")


# --- Equality with the authors' code ---------------------------------------------------------


@ATTENTION
def test_every_stage_equals_the_authors(io, attention: str) -> None:
    model = authors("eat", attention=attention)
    with torch.no_grad():
        torch.testing.assert_close(
            model.spectrogram(io["wav"][:1]), io["fbank_var"][:, 0], rtol=0, atol=1e-3
        )
        output = model(input_features=io["fbank_var"][:, 0], output_hidden_states=True)
    torch.testing.assert_close(torch.stack(output.hidden_states[:-1]), io["layers"], **FEATURES)
    torch.testing.assert_close(output.last_hidden_state, io["features_var"][:1], **FEATURES)
    assert torch.equal(output.hidden_states[-1], output.last_hidden_state)


@ATTENTION
def test_waveforms_give_the_authors_features(io, attention: str) -> None:
    model = authors("eat", attention=attention)
    with torch.no_grad():
        output = model(io["wav"]).last_hidden_state
        torch.testing.assert_close(output, io["features_var"], rtol=0, atol=5e-5)
        for row in range(2):
            alone = model(io["wav"][row : row + 1]).last_hidden_state
            torch.testing.assert_close(alone, io["features_var"][row : row + 1], rtol=0, atol=5e-5)


@ATTENTION
def test_a_padded_batch_equals_the_authors_clip_by_clip(io, attention: str) -> None:
    model = authors("eat", attention=attention)
    waveform, mask = F.pad(io["wav"], (0, 9_000), value=math.nan), torch.zeros(3, 41_000)
    waveform = torch.cat([waveform, noise(1, 41_000)])  # beside a longer clip
    mask[:2, :32_000] = 1
    mask[2] = 1
    with torch.no_grad():
        output = model(waveform, attention_mask=mask).last_hidden_state
    torch.testing.assert_close(output[:2, :105], io["features_var"], rtol=0, atol=5e-5)
    assert model.patch_mask(mask).sum(dim=1).tolist() == [104, 104, 128]


@ATTENTION
def test_clips_filled_up_to_the_authors_length_give_their_features(io, attention: str) -> None:
    model = authors("eat", attention=attention, target_length=1024)
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
    ("file", "target_length", "expected"),
    [
        (FAIRSEQ, None, "logits_var"),
        (FAIRSEQ, 1024, "logits"),
        (PORT, None, "logits_var"),
        (PORT, 1024, "hf_logits"),
    ],
)
def test_logits_equal_the_authors(
    io, attention: str, file: str, target_length: int | None, expected: str
) -> None:
    model = authors("eat", file, head=True, attention=attention, target_length=target_length)
    with torch.no_grad():
        logits = model(io["wav"]).logits
    torch.testing.assert_close(logits, io[expected], **LOGITS)


def test_the_heads_norm_has_the_epsilon_of_where_it_was_trained(io) -> None:
    fairseq, port = (
        authors("eat", file, head=True, target_length=1024).double() for file in (FAIRSEQ, PORT)
    )
    assert (fairseq.config.head_norm_eps, port.config.head_norm_eps) == (1e-6, 1e-5)
    with torch.no_grad():
        for own, other, logits in ((fairseq, port, "logits"), (port, fairseq, "hf_logits")):
            own_error, other_error = (
                (model(io["wav"]).logits - io[logits]).abs().max() for model in (own, other)
            )
            assert own_error < 0.5 * other_error  # 3e-6 and 2e-5


def test_another_position_table_is_read_not_recomputed(io, tmp_path: Path) -> None:
    model = authors("eat")
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


def test_a_new_table_is_the_authors() -> None:
    table = torch.from_numpy(sine_positions(72, 8, 48))
    # Theirs is computed in float32: angles up to 72 are rounded to 4e-6.
    torch.testing.assert_close(table, authors("eat").embedding.positions[0], rtol=0, atol=5e-6)


def test_the_longest_clip_fills_the_table_and_a_longer_one_is_refused() -> None:
    model = tiny("eat")  # 16 patches of 16 frames
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


@pytest.mark.parametrize("target_length", [None, 64])
def test_the_patch_grid_counts_the_patches(target_length: int | None) -> None:
    model = tiny("eat", target_length=target_length)
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
    patches = tiny("eat").patch_mask(mask).unflatten(1, (3, 8))
    assert patches.all(dim=2).sum(dim=1).tolist() == [1, 1, 2, 3]
    assert torch.equal(patches.all(dim=2), patches.any(dim=2))


def test_with_a_target_length_padding_counts_as_sound_for_every_clip() -> None:
    model = tiny("eat", target_length=96)
    _, mask = padded([400, 8_000, 32_000])
    assert model.patch_mask(mask).shape == (3, 6 * 8)
    assert model.patch_mask(mask).all()


def test_patches_run_through_time_slowly_and_through_bands_fast() -> None:
    model = tiny("eat")
    features = torch.zeros(1, 64, 128)
    with torch.no_grad():
        still = model.embed_patches(features)
        features[0, 32:48, 48:64] = 1.0  # time patch 2, band 3
        moved = (model.embed_patches(features) - still).abs().amax(dim=-1)[0] > 1e-6
    assert moved.nonzero().flatten().tolist() == [1 + 2 * 8 + 3]


def test_split_takes_the_class_token_from_the_front() -> None:
    hidden_states = noise(2, 1 + 24, 32)
    class_tokens, patches = tiny("eat").split(hidden_states)
    assert torch.equal(class_tokens, hidden_states[:, 0:1])
    assert torch.equal(patches, hidden_states[:, 1:])


# --- Inputs -----------------------------------------------------------------------------------


def test_a_constant_added_to_a_clip_changes_nothing() -> None:
    waveform, mask = padded([8_000, 16_000])
    offset = torch.tensor([[0.1], [-0.3]])
    with torch.no_grad():
        plain, shifted = (
            authors("eat")(waveform + shift * mask, attention_mask=mask).last_hidden_state
            for shift in (0.0, offset)
        )
    token_mask = authors("eat").token_mask(mask)
    torch.testing.assert_close(plain[token_mask], shifted[token_mask], rtol=0, atol=1e-4)


def test_stepping_through_the_layers_by_hand_gives_the_same() -> None:
    model = authors("eat")
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


@pytest.mark.parametrize("frames", [0, 15, 33])
def test_features_of_no_whole_number_of_patches_are_refused(frames: int) -> None:
    with pytest.raises(ValueError, match=f"{frames} frames, which is not a multiple of 16"):
        tiny("eat")(input_features=torch.zeros(1, frames, 128))


@pytest.mark.parametrize("options", [{"num_attention_heads": 5}, {"hidden_size": 30}])
def test_a_hidden_size_that_cannot_be_shared_is_refused(options: dict) -> None:
    with pytest.raises(StrictDataclassClassValidationError, match="is not a multiple of"):
        tiny_config("eat", **options)


@pytest.mark.parametrize("target_length", [0, -16, 1000, 272])
def test_a_target_length_that_does_not_fit_is_refused(target_length: int) -> None:
    with pytest.raises(StrictDataclassClassValidationError, match="from 16 to 256 frames"):
        tiny_config("eat", target_length=target_length)


# --- Precision and compilation ----------------------------------------------------------------


# --- Training ---------------------------------------------------------------------------------


# --- Saving -----------------------------------------------------------------------------------

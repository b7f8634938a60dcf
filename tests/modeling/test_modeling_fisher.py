import copy
import json
import math
from collections.abc import Callable
from pathlib import Path

import pytest
import torch
import torch.nn.functional as F
from huggingface_hub.errors import StrictDataclassError
from safetensors.torch import load_file
from torch import Tensor, nn
from transformers import AutoConfig, AutoModel

from modeling.configuration_asd import FisherConfig
from modeling.convert_original import load_original
from modeling.modeling_fisher import FisherModel
from tests.tiny import TINY_FISHER

FIXTURES = Path(__file__).parents[1] / "fixtures" / "fisher"
PARITY = Path(__file__).resolve().parents[3] / "shared" / "parity"  # untrimmed
TINY = {name: value for name, value in TINY_FISHER.items() if name != "model_type"}
RATES = [16_000, 44_100, 8_000, 1_000]
ATTENTION = pytest.mark.parametrize("attention", ["sdpa", "eager"])
ORDER = pytest.mark.parametrize("flatten", ["freq", "time"])


@pytest.fixture(scope="module")
def io() -> dict[str, Tensor]:
    return load_file(FIXTURES / "io.safetensors")


@pytest.fixture(scope="module")
def authors() -> Callable[..., FisherModel]:
    """Return a function that loads the fixture's model; keyword arguments set config fields."""
    loaded = load_original(FIXTURES / "fisher.pt")

    def load(*, attention: str = "sdpa", **options) -> FisherModel:
        model = copy.deepcopy(loaded)
        model.set_attn_implementation(attention)
        for name, value in options.items():
            setattr(model.config, name, value)
        return model

    return load


def tiny(**options) -> FisherModel:
    with torch.random.fork_rng():
        torch.manual_seed(0)
        return FisherModel(FisherConfig(**(TINY | options))).eval()


def noise(*shape: int, seed: int = 0) -> Tensor:
    return 0.1 * torch.randn(shape, generator=torch.Generator().manual_seed(seed))


def padded(lengths: list[int], *, filler: float = 0.0) -> tuple[Tensor, Tensor]:
    """Return clips of these lengths in one batch, and their attention mask."""
    waveform = torch.full((len(lengths), max(lengths)), filler)
    mask = torch.zeros(waveform.shape, dtype=torch.long)
    for row, length in enumerate(lengths):
        # Each with an offset of its own: the mean is over the clip's samples alone.
        waveform[row, :length] = noise(length, seed=row) + 0.1 * (row + 1)
        mask[row, :length] = 1
    return waveform, mask


# --- Equality with the authors' code ---------------------------------------------------------


def check_parity(model: FisherModel, io: dict[str, Tensor]) -> None:
    """Compare with every array of a parity folder that `io` holds."""
    close = {"rtol": 0, "atol": 3e-5}  # given the authors' spectrogram
    loose = {"rtol": 0, "atol": 1e-4}  # from the waveform; the spectrogram's rounding comes first
    padding = copy.deepcopy(model)
    padding.config.target_length = 1024
    with torch.no_grad():
        for rate in RATES:
            waveform = io[f"wav_{rate}"][None]
            output = model(waveform, sampling_rate=rate)
            torch.testing.assert_close(output.pooler_output, io[f"embedding_{rate}"], **loose)
            long = padding(waveform, sampling_rate=rate).pooler_output
            torch.testing.assert_close(long, io[f"embedding_pad1024_{rate}"], **loose)
            if f"tokens_{rate}" in io:
                tokens = io[f"tokens_{rate}"]
                torch.testing.assert_close(output.last_hidden_state[0], tokens, **loose)
            if f"spec_{rate}" not in io:
                continue
            features = io[f"spec_{rate}"][None]
            ours = model.spectrogram(waveform, sampling_rate=rate)
            torch.testing.assert_close(ours, features, rtol=0, atol=1e-3)
            assert (ours - features).square().mean().sqrt() < 1e-5
            output = model(input_features=features, sampling_rate=rate)
            torch.testing.assert_close(output.pooler_output, io[f"embedding_{rate}"], **close)
            if f"tokens_{rate}" in io:
                tokens = io[f"tokens_{rate}"]
                torch.testing.assert_close(output.last_hidden_state[0], tokens, **close)
            long = padding(input_features=features, sampling_rate=rate).pooler_output
            torch.testing.assert_close(long, io[f"embedding_pad1024_{rate}"], **close)

        hidden = model(input_features=io["spec_16000"][None], output_hidden_states=True)
        layers = torch.cat(hidden.hidden_states)
        torch.testing.assert_close(layers, io["layers_16000"], **close)
        embedding = model(io["wav_batch"]).pooler_output
        torch.testing.assert_close(embedding, io["embedding_batch"], **loose)
        if "spec_batch" in io:
            ours = model.spectrogram(io["wav_batch"])
            torch.testing.assert_close(ours, io["spec_batch"], rtol=0, atol=1e-3)
        late = model(io["wav_long_1000"][None], sampling_rate=1_000).pooler_output
        torch.testing.assert_close(late, io["embedding_long_1000"], **loose)
        # Digital silence is rounding noise in the logarithm, other noise in float64.
        silent = model(io["wav_silence"][None]).pooler_output
        torch.testing.assert_close(silent, io["embedding_silence"], rtol=0, atol=5e-2)

        model.embedding.positions[:, :128] = io["alt_positions_first_128_rows"]
        moved = model(io["wav_16000"][None]).pooler_output
        torch.testing.assert_close(moved, io["alt_positions_embedding_16000"], **loose)
        assert (moved - io["embedding_16000"]).abs().max() > 1e-2


@ATTENTION
def test_every_output_equals_the_authors(io, authors, attention: str) -> None:
    check_parity(authors(attention=attention), io)


@ATTENTION
@pytest.mark.parametrize("folder", ["fisher", "fisher_bw100"])
def test_every_output_equals_the_authors_with_the_whole_table(folder: str, attention: str) -> None:
    if not (PARITY / folder).is_dir():
        pytest.skip("the untrimmed parity files are not beside the repository")
    model = load_original(PARITY / folder / "fisher.pt")
    model.set_attn_implementation(attention)
    check_parity(model, load_file(PARITY / folder / "io.safetensors"))


@ATTENTION
def test_sub_bands_of_another_width_equal_the_authors(io, authors, attention: str) -> None:
    # The same weights with the table of another grid, which is the plain sine and cosine one.
    state = authors().state_dict()
    config = FisherConfig(
        **(authors().config.to_dict() | {"band_width": 100, "max_length": 64, "max_freq": 25})
    )
    model = FisherModel(config).eval()
    state["embedding.positions"] = model.embedding.positions
    model.load_state_dict(state)
    model.set_attn_implementation(attention)
    padding = copy.deepcopy(model)
    padding.config.target_length = 1024
    with torch.no_grad():
        for rate in RATES:
            for name, encoder in (("embedding", model), ("embedding_pad1024", padding)):
                output = encoder(io[f"wav_{rate}"][None], sampling_rate=rate).pooler_output
                expected = io[f"bw100_{name}_{rate}"]
                torch.testing.assert_close(output, expected, rtol=0, atol=1e-4)


def test_in_float64_the_encoder_is_near_the_authors_own(io, authors) -> None:
    model = authors().double()
    with torch.no_grad():
        output = model(io["wav_16000"][None]).pooler_output
    # The spectrogram stays float32 here, and was float64 there.
    torch.testing.assert_close(output, io["embedding_f64_16000"], rtol=0, atol=2e-5)


def test_every_parameter_but_the_key_bias_matters(io, authors) -> None:
    model = authors().double()
    features = io["spec_1000"][None].double()
    with torch.no_grad():
        before = model(input_features=features, sampling_rate=1_000).pooler_output
        tensors = dict(model.named_parameters()) | dict(model.named_buffers())
        for name, tensor in tensors.items():
            kept = tensor.clone()
            size = tensor.shape[0] // 3
            key = slice(size, 2 * size) if name.endswith("qkv.bias") else None
            if key is not None:  # the softmax does not see it
                tensor[key] += noise(size).double()
                after = model(input_features=features, sampling_rate=1_000).pooler_output
                assert (after - before).abs().max() < 1e-12, name
            tensor.add_(noise(*tensor.shape).double())
            after = model(input_features=features, sampling_rate=1_000).pooler_output
            tensor.copy_(kept)
            assert (after - before).abs().max() > 1e-6, name


@pytest.mark.parametrize(
    ("size", "heads", "parameters"),
    [(192, 3, 5_388_288), (256, 4, 9_543_680), (384, 6, 21_393_408)],
    ids=["tiny", "mini", "small"],
)
def test_the_released_sizes_have_the_published_parameters(
    size: int, heads: int, parameters: int
) -> None:
    sizes = {"hidden_size": size, "num_attention_heads": heads, "intermediate_size": 4 * size}
    if size == 384:
        sizes = {}  # the defaults
    with torch.device("meta"):
        model = FisherModel(FisherConfig(**sizes))
    assert model.num_parameters() == parameters


# --- Sub-bands, patches, positions --------------------------------------------------------------


@pytest.mark.parametrize(
    ("rate", "bands"),
    [(8_000, 2), (16_000, 4), (25_600, 6), (44_100, 11), (48_000, 12), (51_200, 12), (1_000, 1)],
)
def test_a_higher_rate_means_more_sub_bands(rate: int, bands: int) -> None:
    model = tiny()
    output = model(noise(1, rate // 4), sampling_rate=rate)
    time, band = model.patch_grid(rate // 4, rate)
    assert (time, band) == (1, bands * 3)
    assert model.num_bands(rate) == bands
    assert output.last_hidden_state.shape == (1, bands, 1 + 3 * time, 32)
    assert torch.equal(output.pooler_output, output.last_hidden_state[:, :, 0].flatten(1))
    assert tiny(sampling_rate=rate).num_class_tokens == bands


@ORDER
def test_a_sound_moves_the_tokens_of_its_own_sub_band_alone(flatten: str) -> None:
    model = tiny(flatten=flatten)
    features = noise(1, 64, 201)
    with torch.no_grad():
        before = model(input_features=features).last_hidden_state
        features[0, 20, 100:148] += 1.0  # sub-band 2
        moved = (model(input_features=features).last_hidden_state != before).flatten(2).any(dim=2)
    assert moved.tolist() == [[False, False, True, False]]


@ORDER
def test_split_orders_patches_by_time_then_frequency(flatten: str) -> None:
    model = tiny(flatten=flatten)
    features = torch.zeros(1, 64, 201)
    with torch.no_grad():
        silent = model.split(model.embed_patches(features))[1]
        features[0, 32:48, 50 + 32 : 50 + 48] = 1.0  # time patch 2, sub-band 1, column 2
        class_tokens, patches = model.split(model.embed_patches(features))
    assert class_tokens.shape == (1, 4, 32)
    moved = (patches - silent).abs().amax(dim=-1)[0] > 1e-6
    assert moved.nonzero().flatten().tolist() == [2 * 12 + 1 * 3 + 2]


def test_what_fills_no_patch_is_not_heard() -> None:
    model = tiny()
    features = noise(1, 70, 201)
    heard = features.clone()
    heard[:, 64:] = 9.0  # frames behind the last whole patch
    for band in range(4):
        heard[:, :, 50 * band + 48 : 50 * band + 50] = 9.0
    heard[:, :, 200] = 9.0  # above the last whole sub-band
    with torch.no_grad():
        outputs = [model(input_features=f).last_hidden_state for f in (features, heard)]
    assert torch.equal(*outputs)


def test_time_first_is_frequency_first_with_the_table_in_another_order() -> None:
    time, columns = 5, 3
    models = [tiny(flatten="time"), tiny(flatten="freq")]
    rows = torch.arange(time * columns).view(columns, time).T.flatten()
    with torch.no_grad():
        models[1].embedding.positions[0, : len(rows)] = models[0].embedding.positions[0, rows]
        features = noise(2, 16 * time, 201)
        outputs = [m.split(m(input_features=features).last_hidden_state) for m in models]
    for ours, expected in zip(*outputs, strict=True):
        torch.testing.assert_close(ours, expected, rtol=0, atol=1e-5)


def test_a_new_table_holds_sines_and_cosines_of_both_axes() -> None:
    table = tiny(hidden_size=16).embedding.positions[0]  # 32 x 8 patches
    for time, column in [(0, 0), (0, 7), (1, 0), (31, 5)]:
        waves = [
            wave(place * 10_000 ** (-k / 4))
            for place in (column, time)
            for wave in (math.sin, math.cos)
            for k in range(4)
        ]
        torch.testing.assert_close(table[8 * time + column], torch.tensor(waves))


def test_the_table_of_the_authors_is_the_plain_one(authors) -> None:
    config = authors().config
    plain = FisherModel(config).embedding.positions
    torch.testing.assert_close(authors().embedding.positions, plain, rtol=0, atol=1e-5)


def test_positions_are_never_trained() -> None:
    model = tiny().train()
    assert not [name for name, _ in model.named_parameters() if "position" in name]
    before = model.embedding.positions.clone()
    optimizer = torch.optim.SGD(model.parameters(), lr=1.0)
    model(noise(1, 8_000)).pooler_output.square().sum().backward()
    optimizer.step()
    assert torch.equal(model.embedding.positions, before)
    assert not model.embedding.positions.requires_grad


def test_more_patches_than_positions_are_refused() -> None:
    model = tiny(max_length=3, max_freq=4)  # 12 rows: 4 patches of time by 3 columns
    frames = 16 * 4
    assert torch.isfinite(model(input_features=noise(1, frames, 201)).pooler_output).all()
    with pytest.raises(ValueError, match=r"15 patches per sub-band came; .* table ends after 12"):
        model(input_features=noise(1, frames + 16, 201))


def test_what_comes_after_max_frames_counts_in_the_mean_only(authors) -> None:
    model, clip = authors(max_frames=64), noise(1, 16_000)
    heard = model.log_stft.num_samples(64, 16_000)
    backwards, moved = clip.clone(), clip.clone()
    backwards[:, heard:] = clip[:, heard:].flip(1)
    moved[:, heard:] += 0.5
    with torch.no_grad():
        output, same, other = (model(x).last_hidden_state for x in (clip, backwards, moved))
    assert output.shape[2] == 1 + 4 * 3
    torch.testing.assert_close(same, output, rtol=0, atol=1e-5)
    assert (other - output).abs().max() > 1e-2
    assert model.patch_grid(16_000) == (4, 12)


# --- Padding ----------------------------------------------------------------------------------


@ATTENTION
@ORDER
@pytest.mark.parametrize(
    ("dtype", "atol"),
    # bfloat16 keeps 8 bits: sums of another order differ by a few units in the last place.
    [(torch.float32, 1e-5), (torch.bfloat16, 0.05)],
    ids=["float32", "bfloat16"],
)
@pytest.mark.parametrize("rate", [16_000, 44_100])
def test_a_clip_is_the_same_alone_and_beside_longer_clips(
    authors, attention: str, flatten: str, dtype: torch.dtype, atol: float, rate: int
) -> None:
    one, two = (authors().log_stft.num_samples(16 * patches, rate) for patches in (1, 2))
    lengths = [one, 2 * rate, two - 1, 19 * rate // 10]
    waveform, mask = padded(lengths, filler=math.nan)  # what is behind a clip is never read
    model = authors(attention=attention, flatten=flatten).to(dtype)
    with torch.no_grad():
        together = model(
            waveform, attention_mask=mask, sampling_rate=rate, output_hidden_states=True
        )
        patch_mask = model.patch_mask(mask, rate)
        for row, length in enumerate(lengths):
            alone = model(
                waveform[row : row + 1, :length], sampling_rate=rate, output_hidden_states=True
            )
            assert patch_mask[row].sum() == math.prod(model.patch_grid(length, rate))
            pairs = zip(together.hidden_states, alone.hidden_states, strict=True)
            for ours, expected in pairs:
                classes, patches = model.split(ours[row : row + 1])
                expected_classes, expected_patches = model.split(expected)
                torch.testing.assert_close(classes, expected_classes, rtol=0, atol=atol)
                torch.testing.assert_close(
                    patches[:, patch_mask[row]], expected_patches, rtol=0, atol=atol
                )
            torch.testing.assert_close(
                together.pooler_output[row], alone.pooler_output[0], rtol=0, atol=atol
            )
        assert torch.isfinite(together.last_hidden_state).all()


@ORDER
def test_with_a_target_length_all_of_it_counts_for_every_clip(authors, flatten: str) -> None:
    lengths = [400, 2_799, 32_000, 9_999]  # one frame, less than a patch, cut, padded
    waveform, mask = padded(lengths, filler=math.nan)
    model = authors(target_length=128, flatten=flatten)
    with torch.no_grad():
        together = model(waveform, attention_mask=mask).last_hidden_state
        assert together.shape == (4, 4, 1 + 8 * 3, 48)
        assert model.patch_mask(mask).shape == (4, 8 * 12)
        assert model.patch_mask(mask).all()
        assert model.token_mask(mask).all()
        for row, length in enumerate(lengths):
            assert model.patch_grid(length) == (8, 12)
            alone = model(waveform[row : row + 1, :length]).last_hidden_state
            torch.testing.assert_close(together[row], alone[0], rtol=0, atol=1e-5)
            # Zeros after normalising, not silence before it.
            features = model.spectrogram(waveform[row : row + 1, :length])
            own = min(128, model.log_stft.num_frames(length, 16_000))
            assert not features[:, own:].any()
            assert features[:, :own].any()
    assert model.patch_grid(399) == (0, 12)


def test_a_mask_of_ones_is_no_mask(authors) -> None:
    model, waveform = authors(), noise(2, 16_000)
    with torch.no_grad():
        masked = model(waveform, attention_mask=torch.ones_like(waveform)).last_hidden_state
        torch.testing.assert_close(masked, model(waveform).last_hidden_state, rtol=0, atol=1e-6)


@pytest.mark.parametrize("rate", RATES)
def test_the_patch_grid_counts_the_patches(rate: int) -> None:
    model = tiny()
    whole = model.log_stft.num_samples(16, rate)
    hop = 16 * model.log_stft.hop_length(rate)
    assert model.patch_grid(whole - 1, rate)[0] == 0
    for num_samples, time in ((whole, 1), (whole + hop - 1, 1), (whole + hop, 2), (9 * rate, 56)):
        assert model.patch_grid(num_samples, rate)[0] == time
        patches = model.split(model(noise(1, num_samples), sampling_rate=rate)[0])[1]
        assert patches.shape[1] == math.prod(model.patch_grid(num_samples, rate))
    assert model.patch_grid(20 * rate, rate)[0] == 64  # cut
    assert model.num_samples_per_patch == 2_800
    assert tiny(target_length=64).num_samples_per_patch == 400


# --- Inputs -----------------------------------------------------------------------------------


@pytest.mark.parametrize("target_length", [None, 64, 256])
def test_features_in_place_of_the_waveform_give_the_same(authors, target_length) -> None:
    model = authors(target_length=target_length)
    waveform, mask = padded([8_000, 16_000])
    with torch.no_grad():
        direct = model(waveform, attention_mask=mask).last_hidden_state
        features = model.spectrogram(waveform, mask)
        indirect = model(input_features=features, attention_mask=mask).last_hidden_state
    assert torch.equal(direct, indirect)


def test_features_behind_a_clip_are_not_read(authors) -> None:
    waveform, mask = padded([8_000, 16_000])
    model = authors(target_length=96)
    features = model.spectrogram(waveform, mask)
    changed = features.clone()
    changed[0, model.log_stft.num_frames(8_000, 16_000) :] = math.nan
    with torch.no_grad():
        outputs = [
            model(input_features=f, attention_mask=mask).pooler_output for f in (features, changed)
        ]
    assert torch.equal(*outputs)


@ORDER
def test_stepping_through_the_layers_by_hand_gives_the_same(authors, flatten: str) -> None:
    model = authors(flatten=flatten)
    waveform, mask = padded([8_000, 16_000])
    with torch.no_grad():
        output = model(waveform, attention_mask=mask, output_hidden_states=True)
        token_mask = model.token_mask(mask)
        stepped = [model.embed_patches(model.spectrogram(waveform, mask), token_mask)]
        for layer in model.layers:
            stepped.append(layer(stepped[-1], token_mask))
    for ours, expected in zip(stepped, output.hidden_states, strict=True):
        assert torch.equal(ours, expected)
    assert torch.equal(stepped[-1], output.last_hidden_state)
    tokens = model.split(output.last_hidden_state)[0].flatten(1)
    assert torch.equal(tokens, output.pooler_output)


def test_eager_attention_returns_weights_that_skip_padding(authors) -> None:
    model = authors(attention="eager")
    waveform, mask = padded([8_000, 16_000])
    attentions = model(waveform, attention_mask=mask, output_attentions=True).attentions
    assert len(attentions) == 2
    for weights in attentions:
        torch.testing.assert_close(weights.sum(dim=-1), torch.ones(weights.shape[:-1]))
        hidden = ~model.token_mask(mask).repeat_interleave(4, dim=0)[:, None, None]
        assert not weights[hidden.expand_as(weights)].any()


def test_both_or_neither_input_is_refused() -> None:
    model = tiny()
    with pytest.raises(ValueError, match="got neither of input_values and input_features"):
        model()
    with pytest.raises(ValueError, match="got both of input_values and input_features"):
        model(noise(1, 4_000), input_features=noise(1, 32, 201))


def test_a_clip_shorter_than_a_patch_is_refused() -> None:
    model = tiny()
    with pytest.raises(ValueError, match="2799 samples came; one patch needs 2800"):
        model(noise(1, 2_799))
    with pytest.raises(ValueError, match=r"7716 samples came; one patch needs 7717 \(0\.175 s\)"):
        model(noise(1, 7_716), sampling_rate=44_100)
    waveform, mask = padded([2_799, 8_000])
    with pytest.raises(ValueError, match="A clip of 2799 samples came; one patch needs 2800"):
        model(waveform, attention_mask=mask)
    with pytest.raises(ValueError, match="15 frames; one patch takes 16"):
        model(input_features=noise(1, 15, 201))
    with pytest.raises(ValueError, match=r"399 samples came; .* needs 400"):
        tiny(target_length=64)(noise(1, 399))


@pytest.mark.parametrize("rate", [0, -16_000, 99, 16_000.0, "16000", True, math.nan])
def test_a_sampling_rate_that_is_none_is_refused(rate) -> None:
    with pytest.raises(ValueError, match=r"sampling_rate=.* is not a whole number of hertz from"):
        tiny()(noise(1, 8_000), sampling_rate=rate)


def test_the_lowest_sampling_rate_has_a_patch() -> None:
    output = tiny()(noise(1, 40), sampling_rate=100)
    assert output.last_hidden_state.shape == (1, 1, 1 + 2 * 3, 32)
    assert torch.isfinite(output.last_hidden_state).all()


def test_features_of_another_sampling_rate_are_refused() -> None:
    model = tiny()
    with pytest.raises(ValueError, match=r"expected \(batch, frames, 201\) at 16000 Hz"):
        model(input_features=noise(1, 32, 552))
    assert model(input_features=noise(1, 32, 552), sampling_rate=44_100)[0].shape[1] == 11


def test_padding_before_sound_is_refused() -> None:
    mask = torch.ones(2, 8_000)
    mask[1, :1_000] = 0
    with pytest.raises(ValueError, match="Padding belongs at the end"):
        tiny()(noise(2, 8_000), attention_mask=mask)


@pytest.mark.parametrize("shape", [(2, 7_000), (1, 8_000), (8_000,)])
def test_a_mask_of_another_shape_is_refused(shape: tuple[int, ...]) -> None:
    mask = torch.ones(shape)
    for options in ({}, {"target_length": 64}):
        model = tiny(**options)
        with pytest.raises(ValueError, match="does not fit 2 clips"):
            model(noise(2, 8_000), attention_mask=mask)
    features = tiny().spectrogram(noise(2, 8_000))
    with pytest.raises(ValueError, match="does not fit 2 clips"):
        tiny()(input_features=features, attention_mask=mask)


def test_inputs_without_a_batch_axis_are_refused() -> None:
    with pytest.raises(ValueError, match="Add the batch axis"):
        tiny()(noise(8_000))
    with pytest.raises(ValueError, match=r"expected \(batch, frames, 201\)"):
        tiny()(input_features=noise(32, 201))


@pytest.mark.parametrize(
    ("options", "said"),
    [
        ({"hidden_size": 30}, "hidden_size=30 is not a multiple"),
        ({"hidden_size": 32, "num_attention_heads": 3}, "num_attention_heads=3"),
        ({"band_width": 15}, "band_width=15 bins hold no patch of 16"),
        ({"flatten": "frequency"}, "flatten"),
        ({"target_length": 15}, "target_length=15"),
        ({"target_length": 1_025}, "target_length=1025 and max_frames=1024 do not fit"),
        ({"max_frames": 8}, "max_frames=8"),
        ({"sampling_rate": 99}, "at least 100"),
    ],
    ids=lambda value: next(iter(value)) if isinstance(value, dict) else "",
)
def test_a_configuration_that_cannot_be_is_refused(options: dict, said: str) -> None:
    with pytest.raises(StrictDataclassError, match=said):
        FisherConfig(**(TINY | options))


# --- Precision and compilation ----------------------------------------------------------------


def test_half_precision_stays_near_float32(authors, io) -> None:
    model, waveform = authors(), io["wav_16000"][None]
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


@pytest.mark.slow
@ORDER
def test_it_compiles_as_one_graph_at_any_rate(flatten: str) -> None:
    model = tiny(flatten=flatten)
    waveform, mask = padded([8_000, 6_000])
    compiled = torch.compile(model, backend="eager", fullgraph=True)
    options = {"attention_mask": mask, "output_hidden_states": True}
    with torch.no_grad():
        for rate in (16_000, 8_000, 32_000):
            expected = model(waveform, sampling_rate=rate, **options)
            output = compiled(waveform, sampling_rate=rate, **options)
            torch.testing.assert_close(output.hidden_states, expected.hidden_states)
            torch.testing.assert_close(output.pooler_output, expected.pooler_output)


# --- Training ---------------------------------------------------------------------------------


@ATTENTION
def test_a_gradient_reaches_every_parameter(attention: str) -> None:
    model = tiny().double().train()
    model.set_attn_implementation(attention)
    waveform, mask = padded([16_000, 8_000])
    model(waveform, attention_mask=mask).pooler_output.sin().sum().backward()
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
        model(waveform, attention_mask=mask).pooler_output.square().mean().backward()
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
    model = tiny().train()
    classifier = nn.Linear(4 * 32, 4)
    optimizer = torch.optim.AdamW([*model.parameters(), *classifier.parameters()], lr=5e-3)
    time = torch.arange(3_000) / 16_000
    losses = []
    for _ in range(60):
        classes = torch.randint(4, (16,), generator=generator)
        hertz = 400.0 * 2.0**classes
        clips = 0.05 * torch.sin(2 * math.pi * hertz[:, None] * time)
        clips = clips + 0.02 * torch.randn(clips.shape, generator=generator)
        loss = F.cross_entropy(classifier(model(clips).pooler_output), classes)
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        losses.append(loss.item())
    assert sum(losses[-10:]) / 10 < 0.3 * math.log(4)  # of guessing


# --- Saving -----------------------------------------------------------------------------------


def test_a_reloaded_model_is_the_same(tmp_path: Path) -> None:
    model = tiny()
    with torch.no_grad():
        for tensor in (*model.parameters(), *model.buffers()):
            tensor.normal_()  # no value that an initialisation could hit by chance
    model.save_pretrained(tmp_path)
    reloaded = FisherModel.from_pretrained(tmp_path)
    for kind in ("named_parameters", "named_buffers"):
        old, new = (list(getattr(m, kind)()) for m in (model, reloaded))
        assert [name for name, _ in old] == [name for name, _ in new]
        for (name, before), (_, after) in zip(old, new, strict=True):
            assert torch.equal(before, after), name
            assert before.requires_grad == after.requires_grad, name
    waveform = noise(1, 8_000)
    with torch.no_grad():
        assert torch.equal(model(waveform)[0], reloaded(waveform)[0])


def test_the_auto_classes_know_it(tmp_path: Path) -> None:
    tiny(band_width=40, target_length=64).save_pretrained(tmp_path)
    config = AutoConfig.from_pretrained(tmp_path)
    assert (type(config), config.band_width, config.target_length) == (FisherConfig, 40, 64)
    assert type(AutoModel.from_pretrained(tmp_path)) is FisherModel


def test_a_saved_folder_carries_the_code_it_needs(tmp_path: Path) -> None:
    tiny().save_pretrained(tmp_path)
    config = json.loads((tmp_path / "config.json").read_text())
    assert config["auto_map"]["AutoModel"] == "modeling_fisher.FisherModel"
    files = {path.name for path in tmp_path.iterdir()}
    assert {
        "modeling_fisher.py",
        "modeling_eat.py",
        "encoder_inputs.py",
        "spectrogram.py",
        "configuration_asd.py",
    } <= files
    assert not {"convert_original.py", "convert_fisher.py", "original_checkpoint.py"} & files

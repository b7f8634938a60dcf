import copy
import math
from pathlib import Path

import pytest
import torch
from huggingface_hub.errors import StrictDataclassError
from safetensors.torch import load_file
from torch import Tensor
from transformers import AutoConfig, AutoModel

from modeling.configuration_asd import FisherConfig
from modeling.convert_original import load_original
from modeling.modeling_fisher import FisherModel
from tests.modeling.encoders import ATTENTION, authors, noise, padded, recorded, tiny, tiny_config

PARITY = Path(__file__).resolve().parents[3] / "shared" / "parity"  # untrimmed
RATES = [16_000, 44_100, 8_000, 1_000]
ORDER = pytest.mark.parametrize("flatten", ["freq", "time"])


@pytest.fixture(scope="module")
def io() -> dict[str, Tensor]:
    return recorded("fisher")


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
def test_every_output_equals_the_authors(io, attention: str) -> None:
    check_parity(authors("fisher", attention=attention), io)


@ATTENTION
@pytest.mark.parametrize("folder", ["fisher", "fisher_bw100"])
def test_every_output_equals_the_authors_with_the_whole_table(folder: str, attention: str) -> None:
    if not (PARITY / folder).is_dir():
        pytest.skip("the untrimmed parity files are not beside the repository")
    model = load_original(PARITY / folder / "fisher.pt")
    model.set_attn_implementation(attention)
    check_parity(model, load_file(PARITY / folder / "io.safetensors"))


@ATTENTION
def test_sub_bands_of_another_width_equal_the_authors(io, attention: str) -> None:
    # The same weights with the table of another grid, which is the plain sine and cosine one.
    state = authors("fisher").state_dict()
    config = FisherConfig(
        **(
            authors("fisher").config.to_dict()
            | {"band_width": 100, "max_length": 64, "max_freq": 25}
        )
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


def test_in_float64_the_encoder_is_near_the_authors_own(io) -> None:
    model = authors("fisher").double()
    with torch.no_grad():
        output = model(io["wav_16000"][None]).pooler_output
    # The spectrogram stays float32 here, and was float64 there.
    torch.testing.assert_close(output, io["embedding_f64_16000"], rtol=0, atol=2e-5)


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
    model = tiny("fisher")
    output = model(noise(1, rate // 4), sampling_rate=rate)
    time, band = model.patch_grid(rate // 4, rate)
    assert (time, band) == (1, bands * 3)
    assert model.num_bands(rate) == bands
    assert output.last_hidden_state.shape == (1, bands, 1 + 3 * time, 32)
    assert torch.equal(output.pooler_output, output.last_hidden_state[:, :, 0].flatten(1))
    assert tiny("fisher", sampling_rate=rate).num_class_tokens == bands


@ORDER
def test_a_sound_moves_the_tokens_of_its_own_sub_band_alone(flatten: str) -> None:
    model = tiny("fisher", flatten=flatten)
    features = noise(1, 64, 201)
    with torch.no_grad():
        before = model(input_features=features).last_hidden_state
        features[0, 20, 100:148] += 1.0  # sub-band 2
        moved = (model(input_features=features).last_hidden_state != before).flatten(2).any(dim=2)
    assert moved.tolist() == [[False, False, True, False]]


@ORDER
def test_split_orders_patches_by_time_then_frequency(flatten: str) -> None:
    model = tiny("fisher", flatten=flatten)
    features = torch.zeros(1, 64, 201)
    with torch.no_grad():
        silent = model.split(model.embed_patches(features))[1]
        features[0, 32:48, 50 + 32 : 50 + 48] = 1.0  # time patch 2, sub-band 1, column 2
        class_tokens, patches = model.split(model.embed_patches(features))
    assert class_tokens.shape == (1, 4, 32)
    moved = (patches - silent).abs().amax(dim=-1)[0] > 1e-6
    assert moved.nonzero().flatten().tolist() == [2 * 12 + 1 * 3 + 2]


def test_what_fills_no_patch_is_not_heard() -> None:
    model = tiny("fisher")
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
    models = [tiny("fisher", flatten="time"), tiny("fisher", flatten="freq")]
    rows = torch.arange(time * columns).view(columns, time).T.flatten()
    with torch.no_grad():
        models[1].embedding.positions[0, : len(rows)] = models[0].embedding.positions[0, rows]
        features = noise(2, 16 * time, 201)
        outputs = [m.split(m(input_features=features).last_hidden_state) for m in models]
    for ours, expected in zip(*outputs, strict=True):
        torch.testing.assert_close(ours, expected, rtol=0, atol=1e-5)


def test_the_table_of_the_authors_is_the_plain_one() -> None:
    config = authors("fisher").config
    plain = FisherModel(config).embedding.positions
    torch.testing.assert_close(authors("fisher").embedding.positions, plain, rtol=0, atol=1e-5)


def test_more_patches_than_positions_are_refused() -> None:
    model = tiny("fisher", max_length=3, max_freq=4)  # 12 rows: 4 patches of time by 3 columns
    frames = 16 * 4
    assert torch.isfinite(model(input_features=noise(1, frames, 201)).pooler_output).all()
    with pytest.raises(ValueError, match=r"15 patches per sub-band came; .* table ends after 12"):
        model(input_features=noise(1, frames + 16, 201))


def test_what_comes_after_max_frames_counts_in_the_mean_only() -> None:
    model, clip = authors("fisher", max_frames=64), noise(1, 16_000)
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


@ORDER
def test_with_a_target_length_all_of_it_counts_for_every_clip(flatten: str) -> None:
    lengths = [400, 2_799, 32_000, 9_999]  # one frame, less than a patch, cut, padded
    waveform, mask = padded(lengths, filler=math.nan)
    model = authors("fisher", target_length=128, flatten=flatten)
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


@pytest.mark.parametrize("rate", RATES)
def test_the_patch_grid_counts_the_patches(rate: int) -> None:
    model = tiny("fisher")
    whole = model.log_stft.num_samples(16, rate)
    hop = 16 * model.log_stft.hop_length(rate)
    assert model.patch_grid(whole - 1, rate)[0] == 0
    for num_samples, time in ((whole, 1), (whole + hop - 1, 1), (whole + hop, 2), (9 * rate, 56)):
        assert model.patch_grid(num_samples, rate)[0] == time
        patches = model.split(model(noise(1, num_samples), sampling_rate=rate)[0])[1]
        assert patches.shape[1] == math.prod(model.patch_grid(num_samples, rate))
    assert model.patch_grid(20 * rate, rate)[0] == 64  # cut
    assert model.num_samples_per_patch == 2_800
    assert tiny("fisher", target_length=64).num_samples_per_patch == 400


# --- Inputs -----------------------------------------------------------------------------------


def test_features_behind_a_clip_are_not_read() -> None:
    waveform, mask = padded([8_000, 16_000])
    model = authors("fisher", target_length=96)
    features = model.spectrogram(waveform, mask)
    changed = features.clone()
    changed[0, model.log_stft.num_frames(8_000, 16_000) :] = math.nan
    with torch.no_grad():
        outputs = [
            model(input_features=f, attention_mask=mask).pooler_output for f in (features, changed)
        ]
    assert torch.equal(*outputs)


@ORDER
def test_stepping_through_the_layers_by_hand_gives_the_same(flatten: str) -> None:
    model = authors("fisher", flatten=flatten)
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


@pytest.mark.parametrize("rate", [0, -16_000, 99, 16_000.0, "16000", True, math.nan])
def test_a_sampling_rate_that_is_none_is_refused(rate) -> None:
    with pytest.raises(ValueError, match=r"sampling_rate=.* is not a whole number of hertz from"):
        tiny("fisher")(noise(1, 8_000), sampling_rate=rate)


def test_a_clip_shorter_than_a_patch_at_its_own_rate_is_refused() -> None:
    with pytest.raises(ValueError, match=r"7716 samples came; one patch needs 7717 \(0\.175 s\)"):
        tiny("fisher")(noise(1, 7_716), sampling_rate=44_100)


def test_the_lowest_sampling_rate_has_a_patch() -> None:
    output = tiny("fisher")(noise(1, 40), sampling_rate=100)
    assert output.last_hidden_state.shape == (1, 1, 1 + 2 * 3, 32)
    assert torch.isfinite(output.last_hidden_state).all()


def test_features_of_another_sampling_rate_are_refused() -> None:
    model = tiny("fisher")
    with pytest.raises(ValueError, match=r"expected \(batch, frames, 201\) at 16000 Hz"):
        model(input_features=noise(1, 32, 552))
    assert model(input_features=noise(1, 32, 552), sampling_rate=44_100)[0].shape[1] == 11


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
        tiny_config("fisher", **options)


# --- Precision and compilation ----------------------------------------------------------------


# --- Training ---------------------------------------------------------------------------------


# --- Saving -----------------------------------------------------------------------------------


def test_the_auto_classes_know_it(tmp_path: Path) -> None:
    tiny("fisher", band_width=40, target_length=64).save_pretrained(tmp_path)
    config = AutoConfig.from_pretrained(tmp_path)
    assert (type(config), config.band_width, config.target_length) == (FisherConfig, 40, 64)
    assert type(AutoModel.from_pretrained(tmp_path)) is FisherModel

import json

import numpy as np
import pytest
import torch
from transformers import AutoFeatureExtractor

from modeling.feature_extraction_asd import CHANNELS, AsdFeatureExtractor
from nearfar.schema import FAR, NEAR


@pytest.fixture
def clips():
    rng = np.random.default_rng(0)
    return [0.3 * rng.standard_normal(n).astype(np.float32) for n in (4_000, 3_000, 5_000)]


def extract(near, far=None, *, sampling_rate=16_000, file_names=None, **options):
    return AsdFeatureExtractor(**options)(
        near, far, sampling_rate=sampling_rate, file_names=file_names, return_tensors="np"
    )


def test_the_channels_are_those_of_the_rows():
    assert CHANNELS == {"near": NEAR, "far": FAR}


def test_clips_are_padded_behind_their_end_and_otherwise_untouched(clips):
    far = [clip[::-1] for clip in clips]
    batch = extract(clips, far)
    assert batch["near_values"].dtype == batch["far_values"].dtype == np.float32
    assert batch["attention_mask"].dtype == np.int64
    for i, clip in enumerate(clips):
        n = len(clip)
        np.testing.assert_array_equal(batch["near_values"][i, :n], clip)
        np.testing.assert_array_equal(batch["far_values"][i, :n], clip[::-1])
        np.testing.assert_array_equal(batch["attention_mask"][i], np.arange(5_000) < n)
        assert not batch["near_values"][i, n:].any()
        assert not batch["far_values"][i, n:].any()


def test_clips_with_and_without_a_far_microphone_batch_together(clips):
    batch = extract(clips, [None, clips[1], None])
    assert batch["has_far"].dtype == np.bool_
    assert batch["has_far"].tolist() == [False, True, False]
    assert not batch["far_values"][[0, 2]].any()
    np.testing.assert_array_equal(batch["far_values"][1, :3_000], clips[1])


def test_without_far_all_keys_are_there(clips):
    batch = extract(clips)
    assert set(batch) == {"near_values", "far_values", "has_far", "attention_mask"}
    assert not batch["has_far"].any()
    assert not batch["far_values"].any()


def test_one_clip_is_a_batch_of_one(clips):
    for one in (clips[0], clips[0].tolist(), torch.from_numpy(clips[0]), tuple(clips[0].tolist())):
        batch = extract(one, one)
        np.testing.assert_array_equal(batch["near_values"], clips[0][None])
        assert batch["has_far"].tolist() == [True]


@pytest.mark.parametrize("peak_normalize", [False, True])
def test_a_clip_comes_out_the_same_alone_and_beside_longer_ones(peak_normalize, clips):
    far = [None, clips[1][::-1], None]
    together = extract(clips, far, peak_normalize=peak_normalize)
    for i, clip in enumerate(clips):
        alone = extract(clip, far[i], peak_normalize=peak_normalize)
        for key in ("near_values", "far_values"):
            np.testing.assert_array_equal(together[key][i, : len(clip)], alone[key][0])


def test_both_channels_are_normalised_by_one_peak(clips):
    near, far = clips[0], 2 * clips[0][::-1]
    batch = extract(near, far, peak_normalize=True)
    scale = np.abs(far).max() + 1e-6
    np.testing.assert_allclose(batch["near_values"][0], near / scale, rtol=1e-6)
    np.testing.assert_allclose(batch["far_values"][0], far / scale, rtol=1e-6)


@pytest.mark.parametrize("peak_normalize", [False, True])
def test_clips_are_cut_or_filled_to_one_length_after_their_peak_is_known(peak_normalize, clips):
    clips[2][4_900] = 3.0  # a peak behind the cut
    far = [clip[::-1].copy() for clip in clips]
    whole = extract(clips, far, peak_normalize=peak_normalize)
    batch = extract(clips, far, peak_normalize=peak_normalize, clip_seconds=0.28)  # 4,480 samples
    for name in ("near_values", "far_values"):
        np.testing.assert_array_equal(batch[name], whole[name][:, :4_480])
    assert batch["attention_mask"].all()  # zeros count as sound
    assert batch["attention_mask"].shape == (3, 4_480)


def test_a_length_shorter_than_any_clip_may_be_is_refused():
    with pytest.raises(ValueError, match=r"clip_seconds=0.1 is less than the 2800 samples"):
        AsdFeatureExtractor(clip_seconds=0.1)


@pytest.mark.parametrize("peak_normalize", [False, True])
def test_silence_is_a_clip(peak_normalize):
    batch = extract(np.zeros(4_000), np.zeros(4_000), peak_normalize=peak_normalize)
    assert not batch["near_values"].any()
    assert batch["attention_mask"].all()
    assert batch["has_far"].all()


def test_integer_samples_become_fractions_of_full_scale():
    samples = np.resize(np.array([-32_768, -1, 0, 16_384, 32_767], dtype=np.int16), 3_000)
    expected = samples.astype(np.float64) / 32_768
    np.testing.assert_array_equal(extract(samples)["near_values"][0], expected)
    wide = samples.astype(np.int32) * 65_536
    np.testing.assert_array_equal(extract(wide)["near_values"][0], expected)


def test_float_samples_beyond_full_scale_are_kept():
    np.testing.assert_array_equal(extract(np.full(3_000, 7.5))["near_values"], 7.5)


@pytest.mark.parametrize("dtype", [np.int64, np.uint8, np.bool_, np.complex64])
def test_samples_of_another_type_are_refused(dtype):
    with pytest.raises(TypeError, match=f"samples of type {np.dtype(dtype)}, expected floating"):
        extract(np.zeros(3_000, dtype=dtype))


@pytest.mark.parametrize("rate", [None, 44_100])
def test_another_or_no_sampling_rate_is_refused(rate, clips):
    with pytest.raises(ValueError, match=r"expects 16000 Hz, but .*(44100 Hz|no sampling_rate)"):
        extract(clips, sampling_rate=rate)


@pytest.mark.parametrize("value", [np.nan, np.inf, -np.inf, 1e300])
@pytest.mark.parametrize("channel", ["near", "far"])
def test_a_sample_that_is_not_finite_is_refused_with_clip_and_place(value, channel, clips):
    far = [clip.astype(np.float64) for clip in clips]
    pair = {"near": [clip.copy() for clip in far], "far": far}
    pair[channel][1][123] = value
    with pytest.raises(ValueError, match=rf"Clip 1 \({channel}\) .* first at sample 123"):
        extract(pair["near"], pair["far"])


def test_errors_name_the_file_where_it_is_known(clips):
    clips[2][0] = np.nan
    with pytest.raises(ValueError, match=r"^c\.wav \(near\) has 1 samples that are NaN"):
        extract(clips, file_names=["a.wav", "b.wav", "c.wav"])


def test_a_torn_pair_is_refused(clips):
    with pytest.raises(ValueError, match="Clip 0 has 4000 near samples, but 3999 far ones"):
        extract(clips[0], clips[0][:-1])


@pytest.mark.parametrize("shape", [(4_000, 2), (2, 4_000), (1, 4_000)])
def test_two_dimensions_are_refused_with_a_hint_on_channels(shape):
    with pytest.raises(ValueError, match="0 is near, 1 is far"):
        extract([np.zeros(shape)])
    with pytest.raises(ValueError, match="0 is near, 1 is far"):
        extract(np.zeros(shape))


@pytest.mark.parametrize("num_samples", [0, 1, 2_799])
def test_a_clip_shorter_than_one_patch_is_refused(num_samples):
    with pytest.raises(ValueError, match=f"has {num_samples} samples, expected 2800 or more"):
        extract(np.zeros(num_samples))
    assert extract(np.zeros(max(num_samples, 1)), min_num_samples=1)


@pytest.mark.parametrize(
    ("near", "far", "names", "message"),
    [
        ([], None, None, "no clip in this batch"),
        ([np.zeros(3_000)], [None, None], None, "1 near clips came with 2 far clips"),
        ([np.zeros(3_000)], None, ["a", "b"], "1 near clips came with 2 file names"),
    ],
)
def test_a_call_that_does_not_fit_together_is_refused(near, far, names, message):
    with pytest.raises(ValueError, match=message):
        extract(near, far, file_names=names)


def test_a_bare_encoder_gets_input_values(clips):
    batch = extract(clips, for_encoder=True)
    assert set(batch) == {"input_values", "attention_mask"}
    np.testing.assert_array_equal(batch["input_values"], extract(clips)["near_values"])
    with pytest.raises(ValueError, match="one input; far was given"):
        extract(clips, clips, for_encoder=True)


def test_torch_tensors_on_request(clips):
    batch = AsdFeatureExtractor()(clips, sampling_rate=16_000, return_tensors="pt")
    types = {key: value.dtype for key, value in batch.items()}
    assert types == {
        "near_values": torch.float32,
        "far_values": torch.float32,
        "has_far": torch.bool,
        "attention_mask": torch.int64,
    }


@pytest.mark.parametrize(
    "options",
    [
        {},
        {"peak_normalize": True, "min_num_samples": 400, "clip_seconds": 0.5},
        {"for_encoder": True},
    ],
)
def test_options_survive_a_round_trip(options, tmp_path, clips):
    extractor = AsdFeatureExtractor(sampling_rate=8_000, **options)
    extractor.save_pretrained(tmp_path)
    saved = json.loads((tmp_path / "preprocessor_config.json").read_text())
    expected = "feature_extraction_asd.AsdFeatureExtractor"
    assert saved["auto_map"] == {"AutoFeatureExtractor": expected}
    for cls in (AsdFeatureExtractor, AutoFeatureExtractor):
        loaded = cls.from_pretrained(tmp_path)
        assert type(loaded) is AsdFeatureExtractor
        before, after = extractor.to_dict(), loaded.to_dict()
        assert {key: after[key] for key in before} == before
        assert loaded.model_input_names == extractor.model_input_names
        one = extractor(clips, sampling_rate=8_000)
        two = loaded(clips, sampling_rate=8_000)
        assert set(one) == set(two)

"""A map adds up to the score where the score is a sum, and is what occlusion changes elsewhere."""

from types import SimpleNamespace

import numpy as np
import pytest
import torch
from torch import Tensor
from torch.nn.functional import normalize

from modeling import AsdModel, AutoencoderConfig, AutoencoderModel, KnnDetector, ReferenceBank
from modeling.anomaly_map import BandMeans
from modeling.map_axes import frame_axes, patch_axes, patch_bins
from modeling.pooling import HeardLayer
from tests.modeling.detector_cases import CASES, clips
from tests.tiny import ENCODERS, TINY_EAT, TINY_ENCODER, TINY_FISHER

FAN, RATE = "2026/fan/00", 16_000
BANDS = {"pooling_options": {"keep_bands": True}}
PROJECTED = {"projection": "batch_norm_linear", "projection_size": 8}
PROJECTED |= {"scored_embedding": "projected"}
EVERYTHING = {"channels": ["near", "far", "residual"], "layers": [1, 2]}
LINEAR = {  # models whose embedding is a sum of patches
    "beats": {"encoder": TINY_ENCODER},
    "eat": {"encoder": TINY_EAT},
    "fisher": {"encoder": TINY_FISHER},
    "bands": {"encoder": TINY_FISHER, **BANDS},
    "joined": {**BANDS, "join_bands": True},
    "projected": PROJECTED,
    "projected bands": {**BANDS, **PROJECTED},
    "joined and projected": {"encoder": TINY_EAT, **BANDS, "join_bands": True, **PROJECTED},
    "every channel and layer": EVERYTHING,
    "every channel, joined and projected": {**EVERYTHING, **BANDS, "join_bands": True, **PROJECTED},
    "another pooling scored": {
        **BANDS,
        "join_bands": True,
        "scored_pooling": "mean",
        "scored_pooling_options": {"keep_bands": True},
    },
}
ADDITIVE = [case for case, (name, _) in CASES.items() if name in ("mahalanobis", "kmeans", "norm")]
ADDITIVE += ["knn", "knn, pooled", "knn, euclidean", "knn, one view", "knn, median", "knn, smote"]
ADDITIVE += ["knn, coreset"]


@pytest.fixture
def asd_model(tiny_config):
    """Return a function that makes a small AsdModel in float64, its BatchNorm as if trained."""

    def make(**options) -> AsdModel:
        generator = torch.Generator().manual_seed(3)
        with torch.random.fork_rng():
            torch.manual_seed(0)
            model = AsdModel(tiny_config(**options)).eval().double()
        if model.projection.norm is not None:
            for name, tensor in model.projection.norm.state_dict().items():
                if tensor.is_floating_point():
                    tensor.uniform_(
                        0.5 if name == "running_var" else -0.5, 1.5, generator=generator
                    )
        return model

    return make


def sound(seed: int, num_samples: int = 10_000) -> dict[str, Tensor]:
    """Return one clip as a model takes it: two hums whose pitch is the seed's, and noise."""
    generator = torch.Generator().manual_seed(seed)
    time = torch.arange(num_samples) / RATE
    hum = torch.sin(2 * torch.pi * 400 * time) + torch.sin(2 * torch.pi * (2_000 + 9 * seed) * time)
    noise = torch.randn(2, num_samples, generator=generator)
    near, far = 0.1 * hum + 0.03 * noise[0], 0.02 * hum + 0.03 * noise[1]
    return {
        "near_values": near[None],
        "far_values": far[None],
        "attention_mask": torch.ones(1, num_samples, dtype=torch.long),
    }


def embedded(model: AsdModel, seeds, num_samples: int = 10_000) -> Tensor:
    with torch.no_grad():
        return torch.cat([model(**sound(seed, num_samples)).embedding for seed in seeds])


def profile_of(model: AsdModel, seeds, num_samples: int = 10_000) -> Tensor:
    with torch.no_grad():
        means = [BandMeans(model)(**sound(seed, num_samples)).embedding for seed in seeds]
    return torch.cat(means).mean(dim=0)


@torch.no_grad()
def cosine_score(embedding: Tensor, references: Tensor) -> float:
    """Return 1-NN's score by plain loops in float64, the same nearest clip of each part."""
    clip, references = normalize(embedding[0], dim=-1), normalize(references.double(), dim=-1)
    parts = [
        min(1 - float(clip[view, band] @ reference[view, band]) for reference in references)
        for view in range(clip.shape[0])
        for band in range(clip.shape[1])
    ]
    return sum(parts) / len(parts)


@pytest.mark.parametrize("case", LINEAR)
def test_where_pooling_is_linear_the_cells_add_up_to_the_score_in_float64(case, asd_model) -> None:
    model = asd_model(**LINEAR[case])
    references = embedded(model, range(4)).float()
    detector, clip = KnnDetector().fit(references), sound(9)
    expected = cosine_score(model(**clip).embedding, references)
    assert expected > 1e-5
    profile = profile_of(model, range(3))
    for some in (None, profile, torch.randn(profile.shape)):  # the law holds for any profile
        found = model.anomaly_map(clip, detector, machine=FAN, profile=some)
        assert found.method == "additive"
        time, band = model.encoder.patch_grid(10_000)
        assert found.values.shape == (time, band)
        # The detector keeps unit vectors in float32.
        assert float(found.values.sum()) == pytest.approx(expected, rel=1e-5, abs=1e-9)
        assert found.values.std() > 0


def test_each_cell_is_its_patch_less_the_profile_along_the_way_to_the_neighbour(asd_model) -> None:
    model, clip = asd_model(), sound(9)
    references = embedded(model, range(4)).float()
    profile = profile_of(model, range(3))
    found = model.anomaly_map(clip, KnnDetector().fit(references), machine=FAN, profile=profile)
    assert found.neutral == "profile"
    with torch.no_grad():
        ((layer,),) = model.hear(**clip).values()
    z = layer.patches[0].mean(dim=0)
    unit = normalize(references[:, 0, 0].double(), dim=-1)
    nearest = unit[(unit @ z).argmax()] * z.norm()
    way = (z - nearest) / (2 * z.norm() ** 2)
    (time, band), count = layer.grid, layer.patches.shape[1]
    for patch in range(count):
        own = (layer.patches[0, patch] - profile[0, patch % band]) @ way
        shared = (profile[0].mean(dim=0) - nearest) @ way
        value = found.values[patch // band, patch % band]
        assert float(value) == pytest.approx(float(own + shared) / count, rel=1e-5, abs=1e-10)
    assert count == time * band


@pytest.mark.parametrize("new_detector", CASES, indirect=True)
def test_a_detectors_score_is_the_sum_it_decomposes_into_or_it_says_that_it_is_none(
    detector, new_detector
) -> None:
    for seed in (3, 4):
        embedding = clips(1, seed=seed).double()
        parts = detector.decompose(embedding)
        assert (parts is not None) == (new_detector.case in ADDITIVE)
        if parts is not None:
            total = ((embedding - parts.origin) * parts.direction).sum()
            assert float(total) == pytest.approx(detector.anomaly_score(embedding).item(), rel=1e-5)
    with pytest.raises(ValueError, match="decompose got 2 clips"):
        detector.decompose(clips(2, seed=0))


@pytest.mark.parametrize("case", ["beats", "joined and projected", "every channel and layer"])
def test_a_clip_that_is_its_own_nearest_reference_has_a_map_of_zeros(case, asd_model) -> None:
    model = asd_model(**LINEAR[case])
    detector = KnnDetector().fit(embedded(model, range(4)))
    found = model.anomaly_map(sound(2), detector, machine=FAN)
    other = model.anomaly_map(sound(9), detector, machine=FAN)
    assert found.values.abs().max() < 1e-4 * other.values.abs().max()


NONLINEAR = {
    "rdp": {"pooling": "rdp", **EVERYTHING},
    "gem by band": {"encoder": TINY_FISHER, "pooling": "gem", **BANDS},
    "attentive statistics": {
        "encoder": TINY_EAT,
        "pooling": "attentive_statistics",
        "pooling_options": {"size": 8},
    },
    "mean, with densities": {"detector_options": {"normalization": "local_density"}},
    "cls": {"encoder": TINY_EAT, "pooling": "cls"},
    "cls of FISHER": {"encoder": TINY_FISHER, "pooling": "cls", **BANDS, "join_bands": True},
}


@pytest.mark.parametrize("with_profile", [False, True])
@pytest.mark.parametrize("case", NONLINEAR)
def test_elsewhere_a_cell_is_what_the_score_loses_with_it(case, with_profile, asd_model) -> None:
    options = dict(NONLINEAR[case])
    model, clip = asd_model(**options), sound(9, 8_000)
    detector = KnnDetector(**options.get("detector_options", {})).fit(embedded(model, range(4)))
    profile = profile_of(model, range(3)) if with_profile else None
    found = model.anomaly_map(clip, detector, machine=FAN, profile=profile)
    assert (found.method, found.neutral) == ("occlusion", "profile" if with_profile else "clip")
    time, band = found.values.shape
    row, column = time - 1, band // 2
    with torch.no_grad():
        if options.get("pooling") == "cls":
            changed = without_cell(model, clip, row, column, profile)
        else:
            changed = without_patch(model, clip, row * band + column, profile)
    lost = detector.anomaly_score(model(**clip).embedding) - detector.anomaly_score(changed)
    assert float(found.values[row, column]) == pytest.approx(lost.item(), rel=1e-3, abs=2e-7)
    assert found.values.std() > 0


def without_patch(model, clip, patch, profile) -> Tensor:
    """Return the embedding of a clip with one patch replaced in every channel and layer."""
    heard, stream = {}, 0
    for name, layers in model.hear(**clip).items():
        heard[name] = []
        for layer in layers:
            patches, band = layer.patches.clone(), layer.grid[1]
            same_band = patches[0, patch % band :: band]
            neutral = same_band.mean(dim=0) if profile is None else profile[stream, patch % band]
            patches[0, patch] = neutral
            heard[name].append(HeardLayer(patches, *layer[1:]))
            stream += 1
    return model.embed(heard).embedding


def without_cell(model, clip, row, column, profile) -> Tensor:
    """Return the embedding of a clip with one patch of its spectrogram replaced."""
    mask = clip["attention_mask"]
    features = model.encoder.spectrogram(clip["near_values"], mask)
    time, _ = grid = model.encoder.patch_grid(mask.shape[1])
    config = model.encoder.config
    first = 16 * column
    if config.model_type == "nearfar_fisher":  # three patches, and two bins that none holds
        columns = config.band_width // 16
        first = column // columns * config.band_width + 16 * (column % columns)
    last_of_band = config.model_type == "nearfar_fisher" and column % columns == columns - 1
    bins = slice(first, first + (18 if last_of_band else 16))
    frames = slice(16 * row, None if row == time - 1 else 16 * row + 16)
    neutral = features[0, : 16 * time].mean(dim=0) if profile is None else profile[0, 0]
    changed = features.clone()
    changed[0, frames, bins] = neutral[bins].to(changed)
    return model.embed(
        {"near": model.encode_inputs({"input_features": changed}, mask, grid)}
    ).embedding


def test_cells_before_the_encoder_grow_in_time_where_there_are_many(asd_model, monkeypatch) -> None:
    monkeypatch.setattr("modeling.anomaly_map.MAX_CELLS", 20)
    model = asd_model(encoder=TINY_EAT, pooling="cls")
    detector = KnnDetector().fit(embedded(model, range(4)))
    found = model.anomaly_map(sound(9, 12_000), detector, machine=FAN)
    time, band = model.encoder.patch_grid(12_000)
    assert time * band > 20
    assert found.values.shape == (2, band)  # of three patches, and of what is left
    every = patch_axes(model.encoder, time).time_edges_seconds
    assert found.axes.time_edges_seconds == [every[0], every[3], every[5]]


def hears_patches(model: AsdModel, monkeypatch: pytest.MonkeyPatch) -> None:
    """Let a model's hidden states be the patches of its spectrogram themselves, each 256 numbers.

    What a network with random weights makes of a sound need not lie where the sound does.
    """

    def hear(near_values, attention_mask, **_):
        encoder = model.encoder
        features = encoder.spectrogram(near_values, attention_mask).double()
        time, band = grid = encoder.patch_grid(near_values.shape[1])
        columns = [features[:, : 16 * time, first : first + 16] for first in patch_bins(encoder)]
        patches = torch.stack(columns[:band], dim=2).unflatten(1, (time, 16))
        patches = patches.transpose(2, 3).reshape(1, time * band, 256)
        mask = torch.ones(1, time * band, dtype=torch.bool)
        return {"near": [HeardLayer(patches, mask, grid, patches[:, :0])]}

    monkeypatch.setattr(model, "hear", hear)
    monkeypatch.setattr(model, "forward", lambda **clip: model.embed(model.hear(**clip)))


@pytest.mark.parametrize("bands", [{}, BANDS, {**BANDS, "join_bands": True}])
@pytest.mark.parametrize("encoder", ENCODERS)
def test_a_burst_of_a_tone_is_found_at_its_time_and_frequency(
    encoder, bands, asd_model, monkeypatch
) -> None:
    model = asd_model(encoder=ENCODERS[encoder] | {"hidden_size": 256}, **bands)
    hears_patches(model, monkeypatch)
    length = 30_960  # twelve patches of every encoder, none of them filled up
    detector = KnnDetector().fit(embedded(model, range(6), length))
    clip, profile = sound(3, length), profile_of(model, range(6), length)
    time = torch.arange(length) / RATE
    during = (time > 0.8) & (time < 1.2)
    clip["near_values"] = clip["near_values"] + 0.5 * during * torch.sin(2 * torch.pi * 5e3 * time)
    found = model.anomaly_map(clip, detector, machine=FAN, profile=profile)
    row, column = divmod(int(found.values.argmax()), found.values.shape[1])
    seconds, hertz = found.axes
    assert seconds[row] < 1.2
    assert seconds[row + 1] > 0.8
    assert hertz[column] <= 5_000 <= hertz[column + 1]


@pytest.mark.parametrize("encoder", ENCODERS)
@pytest.mark.parametrize("tone_hz", [500, 1_100, 3_300, 6_900])
def test_a_tone_lies_in_the_band_that_the_axes_name(encoder, tone_hz, asd_model) -> None:
    model = asd_model(encoder=ENCODERS[encoder]).encoder
    tone = torch.sin(2 * torch.pi * tone_hz * torch.arange(16_000) / RATE)[None]
    spectrum = model.spectrogram(tone)[0].mean(dim=0)
    loudest = int(spectrum.argmax())
    time, band = model.patch_grid(16_000)
    seconds, hertz = patch_axes(model, time)
    column = np.searchsorted(hertz, tone_hz, side="right") - 1
    config = model.config
    starts = [16 * i for i in range(band + 1)]
    if encoder == "fisher":
        starts = [50 * (i // 3) + 16 * (i % 3) for i in range(band + 1)]
    assert starts[column] <= loudest < starts[column + 1]
    assert len(seconds) == time + 1
    # A frame is 25 ms long, and a patch is 16 of them, 10 ms apart.
    assert seconds[:2] == pytest.approx([0.0075, 0.1675])
    assert len(hertz) == band + 1
    assert hertz == sorted(hertz)
    assert hertz[-1] == pytest.approx(config.sampling_rate / 2, rel=0.015)


@pytest.mark.parametrize("scoring", ["mse", "mahalanobis"])
def test_an_autoencoders_map_is_its_error_by_frame_and_filter(scoring) -> None:
    config = AutoencoderConfig(
        machines=[FAN], channels=["near", "far"], scoring=scoring, num_mel_bins=16, hidden_size=8
    )
    with torch.random.fork_rng():
        torch.manual_seed(0)
        model = AutoencoderModel(config).eval()
    generator = torch.Generator().manual_seed(1)
    for network in model.networks_of(FAN).values():
        for domain in ("source", "target"):
            draw = torch.randn(16, 16, generator=generator, dtype=torch.float64)
            network.set_covariance(domain, draw @ draw.T)
    clip = sound(5, 8_000)
    embedding = model(**clip, machines=[FAN]).embedding
    bank = ReferenceBank(config)
    table = SimpleNamespace(
        embedding=np.ones((2, 2, 1, 1), np.float32),
        file_names=["a", "b"],
        machines=[FAN] * 2,
        domains=[None] * 2,
        conditions=[None] * 2,
    )
    detector = bank.fit(table).fitted_detector(FAN)
    found = model.anomaly_map(clip, detector, machine=FAN)
    assert found.values.shape == (16, 16)  # frames at 0, 32, ... 480 ms
    total = detector.anomaly_score(embedding).item()
    assert float(found.values.sum()) == pytest.approx(total, rel=1e-4)
    assert found.axes == frame_axes(model.spectrogram, 16)
    if scoring == "mse":  # by plain loops, of the frame at the clip's end: it is in one stack only
        log_mel, _ = model.log_mel(**clip)
        expected = torch.zeros(16)
        for channel, network in model.networks_of(FAN).items():
            stack = log_mel[channel][0, -5:].flatten()
            missed = (network(stack[None])[0] - stack).square()
            expected += missed[-16:] / (12 * 5 * 16) / 2  # rows, frames, bins; channels
        assert found.values[-1].tolist() == pytest.approx(expected.tolist(), rel=1e-4)


def test_a_tone_lies_in_the_filter_that_the_autoencoders_axes_name() -> None:
    spectrogram = AutoencoderModel(AutoencoderConfig(machines=[FAN])).spectrogram
    for tone_hz in (450, 2_500, 6_000):
        tone = torch.sin(2 * torch.pi * tone_hz * torch.arange(16_000) / RATE)[None]
        loudest = int(spectrogram(tone)[0, 5:-5].mean(dim=0).argmax())
        _, hertz = frame_axes(spectrogram, 32)
        assert hertz[loudest] <= tone_hz <= hertz[loudest + 1]


def test_a_profile_of_another_model_is_refused(asd_model) -> None:
    model = asd_model(**EVERYTHING)
    detector = KnnDetector().fit(embedded(model, range(3)))
    profile = profile_of(asd_model(), range(2))
    with pytest.raises(ValueError, match=r"shape \(1, 8, 32\), but this model's is \(4, 8, 32\)"):
        model.anomaly_map(sound(1), detector, machine=FAN, profile=profile)


def test_a_far_channel_that_is_missing_is_refused(asd_model) -> None:
    model = asd_model(**EVERYTHING)
    detector = KnnDetector().fit(embedded(model, range(3)))
    near = sound(1) | {"far_values": None}
    with pytest.raises(ValueError, match="need the far channel"):
        model.anomaly_map(near, detector, machine=FAN)

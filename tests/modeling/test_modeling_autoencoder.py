"""The baselines' networks and scores, against plain derivations in float64."""

import json
import math

import numpy as np
import pytest
import torch
from huggingface_hub.errors import (
    StrictDataclassClassValidationError,
    StrictDataclassFieldValidationError,
)
from torch import Tensor
from transformers import AutoConfig, AutoModel

from modeling import AutoencoderConfig, AutoencoderModel, encoder_fingerprint
from modeling.modeling_autoencoder import DOMAINS, ReconstructionNetwork
from tests.modeling.plain_log_mel import plain_log_mel

FAN, PUMP = "2026/fan/00", "local/pump.v2/00"  # a name that a module cannot have
TINY = {
    "machines": [FAN, PUMP],
    "num_mel_bins": 8,
    "n_fft": 256,
    "hop_length": 128,
    "num_stacked_frames": 3,
    "hidden_size": 6,
    "num_hidden_layers": 2,
    "bottleneck_size": 2,
}


def disturbed(config: AutoencoderConfig) -> AutoencoderModel:
    """Return a model in which no parameter or buffer has a value that it could start with."""
    model = AutoencoderModel(config).eval()
    generator = torch.Generator().manual_seed(0)
    bins = config.num_mel_bins
    with torch.no_grad():
        for parameter in model.parameters():
            parameter += 0.2 * torch.randn(parameter.shape, generator=generator)
        for network in model.modules():
            if isinstance(network, torch.nn.BatchNorm1d):
                network.running_mean.normal_(std=5.0, generator=generator)
                network.running_var.uniform_(0.5, 20.0, generator=generator)
                network.num_batches_tracked.fill_(7)
            if isinstance(network, ReconstructionNetwork):
                for domain in ("source", "target"):
                    root = torch.randn(bins, bins, generator=generator, dtype=torch.float64)
                    network.set_covariance(domain, 100 * root @ root.T)
    return model


@pytest.fixture(params=["mse", "mahalanobis"])
def model(request) -> AutoencoderModel:
    return disturbed(AutoencoderConfig(**TINY, scoring=request.param))


def clips(*lengths: int, seed: int = 1) -> list[Tensor]:
    generator = torch.Generator().manual_seed(seed)
    return [0.1 * torch.randn(length, generator=generator) for length in lengths]


def padded(waveforms: list[Tensor], *, extra: int = 0, value: float = 0.0) -> dict[str, Tensor]:
    """Return a batch, filled behind each clip's end with `value`."""
    longest = max(map(len, waveforms)) + extra
    near = torch.full((len(waveforms), longest), value)
    mask = torch.zeros(len(waveforms), longest, dtype=torch.long)
    for i, waveform in enumerate(waveforms):
        near[i, : len(waveform)] = waveform
        mask[i, : len(waveform)] = 1
    return {"near_values": near, "attention_mask": mask}


def plain_score(model: AutoencoderModel, samples: Tensor, machine: str) -> float:
    """Score one clip as the description reads, frame by frame, in float64."""
    config = model.config
    frames = plain_log_mel(
        samples.double().numpy(),
        bins=config.num_mel_bins,
        n_fft=config.n_fft,
        hop=config.hop_length,
        rate=config.sampling_rate,
    )
    network = model.networks_of(machine)["near"]
    state = {name: tensor.double().numpy() for name, tensor in network.state_dict().items()}
    stacked = config.num_stacked_frames
    last = 3 * (2 * config.num_hidden_layers + 1)
    squares, residuals = [], []
    for t in range(len(frames) - stacked + 1):
        vector = x = np.concatenate(frames[t : t + stacked])
        for i in range(0, last, 3):
            x = state[f"layers.{i}.weight"] @ x + state[f"layers.{i}.bias"]
            centred = x - state[f"layers.{i + 1}.running_mean"]
            deviation = np.sqrt(state[f"layers.{i + 1}.running_var"] + 1e-3)
            x = centred / deviation * state[f"layers.{i + 1}.weight"]
            x = np.maximum(x + state[f"layers.{i + 1}.bias"], 0)
        x = state[f"layers.{last}.weight"] @ x + state[f"layers.{last}.bias"]
        squares.append(float(((x - vector) ** 2).mean()))
        residuals += np.split(x - vector, stacked)
    if config.scoring == "mse":
        return sum(squares) / len(squares)
    distances = []
    for whitening in state["whitening"]:
        if whitening.any():
            inverse = whitening @ whitening.T
            # T x T, and the mean over all of its entries: as the authors' code has it.
            matrix = [[a @ inverse @ b for b in residuals] for a in residuals]
            distances.append(float(np.mean(matrix)))
    return min(distances)


def test_the_default_network_is_the_described_one() -> None:
    network = ReconstructionNetwork(AutoencoderConfig())
    sizes = [layer.weight.shape for layer in network.layers if isinstance(layer, torch.nn.Linear)]
    assert [size[1] for size in sizes] == [640, 128, 128, 128, 128, 8, 128, 128, 128, 128]
    assert sizes[-1][0] == 640
    norms = [layer for layer in network.layers if isinstance(layer, torch.nn.BatchNorm1d)]
    assert {(norm.momentum, norm.eps) for norm in norms} == {(0.01, 1e-3)}
    kinds = [type(layer).__name__ for layer in network.layers]
    assert kinds == ["Linear", "BatchNorm1d", "ReLU"] * 9 + ["Linear"]
    # With running means and variances, the size of the challenge's baseline since 2020.
    counted = [
        *network.parameters(),
        *(n.running_mean for n in norms),
        *(n.running_var for n in norms),
    ]
    assert sum(tensor.numel() for tensor in counted) == 269_992


@pytest.mark.parametrize("machine", [FAN, PUMP])
def test_scores_agree_with_a_plain_derivation(model: AutoencoderModel, machine: str) -> None:
    waveforms = clips(1_500, 700)
    with torch.no_grad():
        scores = model(**padded(waveforms), machines=[machine] * 2).embedding
    assert scores.shape == (2, 1, 1, 1)
    expected = [plain_score(model, waveform, machine) for waveform in waveforms]
    torch.testing.assert_close(
        scores.flatten().double(), torch.tensor(expected).double(), rtol=1e-4, atol=0
    )


def test_a_clip_scores_the_same_alone_and_beside_longer_ones(model: AutoencoderModel) -> None:
    waveforms = clips(1_500, 256, 900, 3_000)
    machines = [FAN, PUMP, PUMP, FAN]
    with torch.no_grad():
        together = model(**padded(waveforms), machines=machines).embedding
        # What stands behind a clip's end is not heard.
        noisy = model(**padded(waveforms, extra=777, value=0.5), machines=machines).embedding
        alone = torch.cat(
            [
                model(near_values=waveform[None], machines=[machine]).embedding
                for waveform, machine in zip(waveforms, machines, strict=True)
            ]
        )
    torch.testing.assert_close(together, alone, rtol=1e-5, atol=0)
    torch.testing.assert_close(noisy, alone, rtol=1e-5, atol=0)


def test_without_machines_every_network_hears_every_clip(model: AutoencoderModel) -> None:
    batch = padded(clips(1_500, 900))
    with torch.no_grad():
        views = model(**batch).embedding
        for i, machine in enumerate([FAN, PUMP]):
            own = model(**batch, machines=[machine] * 2).embedding
            torch.testing.assert_close(views[:, [i]], own)
    assert views.shape == (2, 2, 1, 1)
    assert not torch.allclose(views[:, 0], views[:, 1])


def test_each_channel_is_a_view_of_its_own() -> None:
    model = disturbed(AutoencoderConfig(**TINY, channels=["far", "near"]))
    near, far = clips(1_500, 1_500)
    with torch.no_grad():
        heard = model(near_values=near[None], far_values=far[None], machines=[FAN]).embedding
        silent = torch.zeros_like(far)[None]
        without = model(near_values=near[None], far_values=silent, machines=[FAN]).embedding
    assert heard.shape == (1, 2, 1, 1)
    assert heard[0, 1] == without[0, 1]
    assert heard[0, 0] != without[0, 0]
    with pytest.raises(ValueError, match="far_values is missing"):
        model(near_values=near[None], machines=[FAN])


def test_the_nearer_domain_decides_and_an_absent_one_does_not() -> None:
    network = ReconstructionNetwork(AutoencoderConfig(**TINY, scoring="mahalanobis")).eval()
    log_mel, frames = torch.randn(4, 9, 8), torch.tensor([9, 9, 7, 3])
    narrow, wide = torch.eye(8).double(), 100 * torch.eye(8).double()
    with torch.no_grad(), pytest.raises(ValueError, match="no covariance"):
        network.anomaly_score(log_mel, frames)
    scores = {}
    with torch.no_grad():
        for domain, covariance in (("target", narrow), ("source", wide), (None, 4 * wide)):
            network.set_covariance(domain, covariance)
            scores[domain] = network.anomaly_score(log_mel, frames)
    torch.testing.assert_close(scores["target"], 100 * scores["source"])
    torch.testing.assert_close(scores["source"], 4 * scores[None])


def test_the_whitening_is_the_root_of_the_inverse() -> None:
    network = ReconstructionNetwork(AutoencoderConfig(**TINY))
    root = torch.randn(8, 8, dtype=torch.float64, generator=torch.Generator().manual_seed(0))
    covariance = root @ root.T
    network.set_covariance("target", covariance)
    whitening = network.whitening[DOMAINS.index("target")].double()
    torch.testing.assert_close(
        whitening @ whitening.T, torch.linalg.inv(covariance), rtol=1e-4, atol=1e-4
    )
    # A bin that never varied says nothing.
    covariance[3], covariance[:, 3] = 0.0, 0.0
    network.set_covariance("target", covariance)
    whitening = network.whitening[DOMAINS.index("target")].double()
    torch.testing.assert_close(
        whitening @ whitening.T, torch.linalg.pinv(covariance), rtol=1e-4, atol=1e-4
    )


@pytest.mark.parametrize("covariance", [torch.zeros(8, 8), torch.full((8, 8), torch.nan)])
def test_a_covariance_that_is_none_is_refused(covariance: Tensor) -> None:
    network = ReconstructionNetwork(AutoencoderConfig(**TINY))
    with pytest.raises(ValueError, match="domain 'source' have no covariance"):
        network.set_covariance("source", covariance.double())


def test_a_saved_model_loads_as_it_was(model: AutoencoderModel, tmp_path) -> None:
    model.save_pretrained(tmp_path)
    batch = padded(clips(1_500, 900))
    for loaded in (
        AutoencoderModel.from_pretrained(tmp_path),
        AutoModel.from_pretrained(tmp_path),
        AutoencoderModel.from_pretrained(tmp_path, dtype=torch.bfloat16),  # networks stay float32
    ):
        state = loaded.state_dict()
        assert state.keys() == model.state_dict().keys()
        for name, tensor in model.state_dict().items():
            torch.testing.assert_close(state[name].to(tensor), tensor, rtol=0, atol=0, msg=name)
        with torch.no_grad():
            assert torch.equal(loaded(**batch).embedding, model(**batch).embedding)
        torch.testing.assert_close(encoder_fingerprint(loaded), encoder_fingerprint(model))
    assert type(AutoConfig.from_pretrained(tmp_path)) is AutoencoderConfig
    described = json.loads((tmp_path / "config.json").read_text())
    assert described["machines"] == [FAN, PUMP]


def test_new_weights_are_distributed_as_torchs_own() -> None:
    config = AutoencoderConfig(machines=[FAN])
    model, network = AutoencoderModel(config), ReconstructionNetwork(config)
    ours = model.networks_of(FAN)["near"].state_dict()
    for name, tensor in network.state_dict().items():
        if "weight" in name and tensor.numel() > 10_000:
            bound = 1 / math.sqrt(tensor.shape[1])
            for weight in (tensor, ours[name]):
                assert bound * 0.99 < weight.abs().max() <= bound
                assert weight.std().item() == pytest.approx(bound / math.sqrt(3), rel=0.02)
        elif "layers.1." in name:
            assert torch.equal(tensor, ours[name]), name


def test_what_a_model_cannot_hear_is_refused() -> None:
    model = AutoencoderModel(AutoencoderConfig(**TINY)).eval()
    near = clips(1_500)[0][None]
    with pytest.raises(KeyError, match="no network of '2026/valve/00'"):
        model(near_values=near, machines=["2026/valve/00"])
    with pytest.raises(ValueError, match="1 clips came with 2 machines"):
        model(near_values=near, machines=[FAN, FAN])
    assert model.min_num_samples == 256
    with pytest.raises(ValueError, match="has 255 samples; 3 frames take 256"):
        model(near_values=near[:, :255], machines=[FAN])
    with torch.no_grad():
        assert model(near_values=near[:, :256], machines=[FAN]).embedding.isfinite().all()


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"machines": [FAN, FAN]}, "more than once"),
        ({"channels": ["near", "near"]}, "each once"),
        ({"channels": []}, "each once"),
        ({"hidden_size": 0}, "hidden_size=0"),
        ({"n_fft": 1023}, "even"),
        ({"format_version": 99}, "Update nearfar"),
        ({"detector_options": {"metric": "cosine"}}, "unknown to detector='norm'"),
        ({"detector_options": {"views": [0, 0]}}, "each once"),
    ],
)
def test_a_configuration_without_meaning_is_refused(options, message) -> None:
    with pytest.raises(StrictDataclassClassValidationError, match=message):
        AutoencoderConfig(**options)


def test_a_score_of_another_name_is_refused() -> None:
    with pytest.raises(StrictDataclassFieldValidationError, match="scoring"):
        AutoencoderConfig(scoring="mahala")

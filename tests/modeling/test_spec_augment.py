"""Masks on the encoder's spectrogram: where they lie, and that padding does not move them."""

import pytest
import torch

from modeling import AsdConfig, AsdModel
from modeling.spec_augment import mask_spectrogram
from tests.tiny import ENCODERS


def test_a_run_of_frames_and_one_of_bins_are_zero_and_the_rest_is_as_it_was() -> None:
    features = torch.rand(3, 10, 6) + 1
    num_frames = torch.tensor([10, 7, 10])
    # share 0.5 of the room of 10 - 3 + 1 = 8 places is place 4; of 7 - 3 + 1 = 5, place 2
    masks = torch.tensor([[0.5, 3, 0.0, 2], [0.5, 3, 0.99, 2], [0.7, 0, 0.7, 0]])
    masked = mask_spectrogram(features, num_frames, masks)
    expected = features.clone()
    expected[0, 4:7], expected[0, :, 0:2] = 0, 0
    expected[1, 2:5], expected[1, :, 4:6] = 0, 0
    assert torch.equal(masked, expected)


@pytest.mark.parametrize("share", [0.0, 0.4, 1 - 2.0**-24])
@pytest.mark.parametrize("width", [0, 1, 5, 6, 80])
def test_a_run_has_its_width_and_lies_inside_the_clip(width: int, share: float) -> None:
    features = torch.ones(1, 9, 4)
    masks = torch.tensor([[share, width, 0.0, 0]])
    masked = mask_spectrogram(features, torch.tensor([6]), masks)
    rows = (masked[0] == 0).all(dim=1).nonzero().flatten().tolist()
    assert len(rows) == min(width, 6)
    if rows:
        assert rows == list(range(rows[0], rows[-1] + 1))
        assert rows[-1] < 6


def model_of(encoder: str) -> AsdModel:
    torch.manual_seed(0)
    return AsdModel(AsdConfig(encoder_config=dict(ENCODERS[encoder]))).eval()


@pytest.mark.parametrize("encoder", ENCODERS)
def test_a_masked_clip_is_embedded_as_it_is_alone(encoder: str) -> None:
    model, near = model_of(encoder), 0.1 * torch.randn(3, 12_000)
    lengths = torch.tensor([12_000, 7_000, 9_999])
    mask = (torch.arange(12_000) < lengths[:, None]).long()
    masks = torch.tensor([[0.6, 20, 0.3, 30], [0.6, 20, 0.3, 30], [0.1, 5, 0.9, 0]])
    with torch.no_grad():
        together = model(near, attention_mask=mask, spectrogram_masks=masks).embedding
        for i, length in enumerate(lengths.tolist()):
            one = slice(i, i + 1)
            alone = model(near[one, :length], spectrogram_masks=masks[one]).embedding
            torch.testing.assert_close(together[one], alone, rtol=1e-4, atol=1e-5)
        plain = model(near, attention_mask=mask).embedding
    assert (together - plain).abs().amax(dim=(1, 2, 3)).min() > 1e-4


@pytest.mark.parametrize("encoder", ENCODERS)
def test_masks_of_no_width_change_nothing(encoder: str) -> None:
    model, near = model_of(encoder), 0.1 * torch.randn(2, 8_000)
    masks = torch.tensor([[0.6, 0, 0.3, 0], [0.0, 0, 0.9, 0]])
    with torch.no_grad():
        embedded = model(near, spectrogram_masks=masks).embedding
        assert torch.equal(embedded, model(near).embedding)


def test_a_mask_over_all_bins_leaves_what_silence_in_the_mean_would() -> None:
    model = model_of("beats")
    near = 0.1 * torch.randn(2, 8_000)
    masks = torch.tensor([[0.0, 0, 0.0, 128], [0.0, 999, 0.0, 0]])
    with torch.no_grad():
        embedded = model(near, spectrogram_masks=masks).embedding
    torch.testing.assert_close(embedded[0], embedded[1])

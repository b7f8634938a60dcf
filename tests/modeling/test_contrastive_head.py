"""OS-SCL's two losses, derived a second time in plain loops."""

import math

import numpy as np
import pytest
import torch
import torch.nn.functional as F

from modeling.contrastive_head import supervised_contrastive_loss
from modeling.heads import ArcFaceHead, ContrastiveHead
from tests.modeling.test_heads import arcface_logits, softmax_loss

LABELS = torch.tensor([0, 2, 1, 0, 2, 0])  # class 1 has a single clip
TAU = {"temperature": 0.04, "base_temperature": 0.07}


@pytest.fixture(autouse=True)
def seed():
    torch.manual_seed(0)


def contrastive_loss(features, labels, temperature, base_temperature):
    """(N, D) of any length, (N,): loops over anchors and their positives."""
    unit = [x / np.linalg.norm(x) for x in features]
    total = 0.0
    for i, anchor in enumerate(unit):
        others = [k for k in range(len(unit)) if k != i]
        positives = [k for k in others if labels[k] == labels[i]]
        for p in positives:
            shares = [math.exp((anchor @ unit[a] - anchor @ unit[p]) / temperature) for a in others]
            total += math.log(sum(shares)) / len(positives)
    return temperature / base_temperature * total / len(unit)


@pytest.mark.parametrize("temperature", [0.04, 0.5])
def test_the_contrastive_loss_and_its_gradient_equal_a_second_derivation(temperature):
    features = torch.randn(6, 4, dtype=torch.float64, requires_grad=True)
    loss = supervised_contrastive_loss(
        features, LABELS, temperature=temperature, base_temperature=0.07
    )
    loss.backward()
    start = features.detach().numpy()

    def derived(x):
        return contrastive_loss(x, LABELS.tolist(), temperature, 0.07)

    np.testing.assert_allclose(loss.item(), derived(start), rtol=1e-12)
    for place in np.ndindex(start.shape):
        step = np.zeros_like(start)
        step[place] = 1e-6
        numeric = (derived(start + step) - derived(start - step)) / 2e-6
        np.testing.assert_allclose(features.grad[place].item(), numeric, rtol=1e-4, atol=1e-7)


@pytest.mark.parametrize("angle", [0.0, math.pi / 2, math.pi])
def test_two_clips_of_a_class_at_awkward_angles(angle):
    """With them alone the only candidate is the right one; a third makes it a choice."""
    pair = torch.tensor([[1.0, 0.0], [math.cos(angle), math.sin(angle)]], dtype=torch.float64)
    labels = torch.tensor([0, 0, 1])
    assert supervised_contrastive_loss(pair, labels[:2], **TAU).item() == pytest.approx(0)
    features = torch.cat([pair, torch.tensor([[0.6, 0.8]])]).requires_grad_()
    loss = supervised_contrastive_loss(features, labels, **TAU)
    loss.backward()
    expected = contrastive_loss(features.detach().numpy(), labels.tolist(), 0.04, 0.07)
    assert loss.item() == pytest.approx(expected)
    assert torch.isfinite(features.grad).all()


@pytest.mark.parametrize("num_clips", [1, 4])
def test_clips_without_another_of_their_class_contribute_nothing(num_clips):
    features = torch.randn(num_clips, 4, requires_grad=True)
    loss = supervised_contrastive_loss(features, torch.arange(num_clips), **TAU)
    loss.backward()
    assert loss.item() == 0.0
    assert not features.grad.any()


def feature(perturbation, embedding):
    """The perturbation once more, in float64, batch statistics and all: (B, D) -> (B, D)."""
    layers = ((perturbation.down, perturbation.down_norm), (perturbation.up, perturbation.up_norm))
    values = embedding.detach().double().numpy()
    for linear, norm in layers:
        weight, bias = (p.detach().double().numpy() for p in linear.parameters())
        values = np.maximum(values @ weight.T + bias, 0)
        gain, shift = (p.detach().double().numpy() for p in norm.parameters())
        values = (values - values.mean(0)) / np.sqrt(values.var(0) + norm.eps) * gain + shift
    return values


@pytest.mark.parametrize("num_views", [1, 2])
@pytest.mark.parametrize("soft", [False, True])
@pytest.mark.parametrize("dtype", [torch.float64, torch.float32, torch.bfloat16])
def test_the_loss_is_that_of_arcface_and_of_the_contrast_on_perturbed_features(
    num_views, soft, dtype
):
    head = ContrastiveHead(8, 3, num_views=num_views, num_subcenters=2, margin=0.3, scale=8.0)
    for parameter in head.perturbations.parameters():  # away from gain 1 and shift 0
        parameter.data += 0.2 * torch.randn_like(parameter)
    head = head.double() if dtype == torch.float64 else head
    embedding = torch.randn(6, 8).to(dtype)
    shares = np.eye(3)[LABELS]
    labels = LABELS
    if soft:  # the largest share stays that of LABELS
        shares = 0.7 * shares + 0.3 * np.roll(shares, 1, axis=0)
        labels = torch.from_numpy(shares)
    output = head(embedding, labels)
    views = [feature(perturbation, embedding) for perturbation in head.perturbations]
    weight = head.arcface.weight.detach().double().numpy().reshape(3, 2, 8)
    logits = arcface_logits(views[0], weight, np.eye(3)[LABELS], margin=0.3, scale=8.0)
    expected = softmax_loss(logits, shares) + contrastive_loss(
        np.concatenate(views), LABELS.tolist() * num_views, 0.04, 0.07
    )
    tolerance = 1e-9 if dtype == torch.float64 else 1e-3
    np.testing.assert_allclose(output.loss.item(), expected, rtol=tolerance)
    np.testing.assert_allclose(output.logits.detach().numpy(), logits, atol=100 * tolerance)


@pytest.mark.parametrize("num_views", [1, 2])
def test_the_gradient_of_both_losses_together_is_that_of_finite_differences(num_views):
    head = ContrastiveHead(4, 3, num_views=num_views, temperature=0.3, scale=4.0).double()
    for parameter in head.perturbations.parameters():
        parameter.data += 0.3 * torch.randn_like(parameter)
    embedding = torch.randn(6, 4, dtype=torch.float64, requires_grad=True)
    assert torch.autograd.gradcheck(lambda x: head(x, LABELS).loss, (embedding,), atol=1e-6)


def test_at_inference_the_logits_are_arcface_of_the_first_view():
    head = ContrastiveHead(8, 3, num_views=2).eval()
    embedding = torch.randn(5, 8)
    first = ArcFaceHead(8, 3)
    first.load_state_dict(head.arcface.state_dict())
    torch.testing.assert_close(
        head(embedding).logits, 30 / first.scale * first(head.perturbations[0](embedding)).logits
    )


def test_two_views_give_a_clip_that_is_alone_in_its_class_a_positive():
    embedding, labels = torch.randn(3, 8), torch.arange(3)
    for num_views in (1, 2):
        head = ContrastiveHead(8, 3, num_views=num_views)
        output = head(embedding, labels)
        contrast = output.loss - F.cross_entropy(output.logits, labels)
        assert (contrast.abs() > 1e-6) == (num_views == 2)


def test_the_logits_of_a_clip_do_not_depend_on_its_batch_at_inference():
    head = ContrastiveHead(8, 3)
    for _ in range(20):
        head(torch.randn(6, 8) + 1, LABELS)
    head.eval()
    embedding = torch.randn(5, 8)
    alone = torch.cat([head(clip[None]).logits for clip in embedding])
    torch.testing.assert_close(head(embedding).logits, alone)

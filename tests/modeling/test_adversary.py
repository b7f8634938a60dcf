"""Gradient reversal, its ramp, and the classifiers behind it, alone and in a detector."""

import math

import numpy as np
import pytest
import torch
from huggingface_hub.errors import StrictDataclassClassValidationError
from torch import nn

from modeling import AsdForProxyClassification, AsdModel
from modeling.adversary import Adversary, reversal_strength, reverse_gradient
from tests.modeling.test_modeling_asd import batch_of, perturbed

DOMAINS = torch.tensor([0, 1, 0])
LABELS = torch.tensor([0, 1, 2])
BOTH = {"adversaries": ["domain", "channel"], "channels": ["far", "near"], "layers": [2, 1]}


@pytest.fixture(autouse=True)
def seed():
    torch.manual_seed(0)


@pytest.fixture
def batch(pairs):
    return batch_of(pairs)


# The reversal


@pytest.mark.parametrize("dtype", [torch.float64, torch.float32, torch.bfloat16])
@pytest.mark.parametrize("strength", [0.0, 0.3, 1.0])
def test_reversal_is_the_identity_forward_and_minus_strength_backward(dtype, strength):
    values = torch.randn(3, 4, dtype=dtype, requires_grad=True)
    reversed_ = reverse_gradient(values, strength)
    assert torch.equal(reversed_, values)
    upstream = torch.randn(3, 4, dtype=dtype)
    reversed_.backward(upstream)
    torch.testing.assert_close(values.grad, -strength * upstream)


def test_the_ramp_rises_from_0_to_almost_1():
    for progress in np.linspace(0, 1, 11):
        expected = 2 / (1 + math.exp(-10 * progress)) - 1
        assert reversal_strength(progress) == pytest.approx(expected)
    assert reversal_strength(0.0) == 0.0
    assert reversal_strength(1.0) == pytest.approx(math.tanh(5))
    for progress in (-0.1, 1.1, math.nan):
        with pytest.raises(ValueError, match="share of training done"):
            reversal_strength(progress)


# The classifier


def adversarial_loss(adversary, embedding, labels, class_weights):
    """The loss once more in float64, clip by clip: (B, D), (B,), (2,)."""
    w1, b1, w2, b2 = (p.detach().double().numpy() for p in adversary.parameters())
    total = 0.0
    for x, y in zip(embedding, labels, strict=True):
        if y >= 0:
            logits = w2 @ np.maximum(w1 @ x + b1, 0) + b2
            total += class_weights[y] * (math.log(np.exp(logits).sum()) - logits[y])
    return adversary.weight * total / len(embedding)


@pytest.mark.parametrize("dtype", [torch.float64, torch.float32, torch.bfloat16])
def test_loss_and_gradients_equal_a_second_derivation(dtype):
    adversary = Adversary(5, hidden_size=7, weight=0.3)
    adversary = adversary.double() if dtype == torch.float64 else adversary
    adversary.balance([990, 10])
    embedding = torch.randn(6, 5).to(dtype).requires_grad_()
    labels = torch.tensor([0, 1, 0, -1, 0, 1])
    loss = adversary(embedding, labels, 0.4)
    loss.backward()
    class_weights = [1000 / (2 * 990), 1000 / (2 * 10)]
    start = embedding.detach().double().numpy()

    def derived(x):
        return adversarial_loss(adversary, x, labels.tolist(), class_weights)

    # The losses are float32 in any case.
    np.testing.assert_allclose(loss.item(), derived(start), rtol=1e-5)
    numeric = np.empty_like(start)
    for place in np.ndindex(start.shape):
        step = np.zeros_like(start)
        step[place] = 1e-6
        numeric[place] = (derived(start + step) - derived(start - step)) / 2e-6
    tolerance = 1e-2 if dtype == torch.bfloat16 else 1e-4  # the gradient is rounded, too
    np.testing.assert_allclose(
        embedding.grad.double().numpy(), -0.4 * numeric, rtol=tolerance, atol=1e-6
    )
    bias = adversary.output.bias
    with torch.no_grad():
        bias[0] += 1e-3
        up = derived(start)
        bias[0] -= 2e-3
        down = derived(start)
    assert bias.grad[0].item() == pytest.approx((up - down) / 2e-3, rel=1e-3)  # not reversed


def test_990_source_clips_count_as_much_as_10_target_clips():
    adversary = Adversary(5)
    nn.init.zeros_(adversary.output.weight)  # every clip then has the loss ln 2
    nn.init.zeros_(adversary.output.bias)
    adversary.balance([990, 10])
    embedding = torch.randn(1000, 5)
    sums = [
        adversary(embedding[:n], torch.full((n,), domain), 1.0).item() * n
        for domain, n in enumerate((990, 10))
    ]
    assert sums[0] == pytest.approx(sums[1], rel=1e-4)
    assert sum(sums) / 1000 == pytest.approx(adversary.weight * math.log(2), rel=1e-4)


@pytest.mark.parametrize("counts", [[32, 0], [0, 4], [0, 0]])
def test_a_class_without_a_clip_cannot_be_told_apart(counts):
    with pytest.raises(ValueError, match="needs training clips of both classes"):
        Adversary(5).balance(counts)


@pytest.mark.parametrize("labels", [torch.tensor([0, 2]), torch.tensor([-2, 0]), torch.tensor([0])])
def test_labels_that_are_no_class_are_refused(labels):
    with pytest.raises(ValueError, match="must be 2 of 0, 1 or, where unknown, -1"):
        Adversary(5)(torch.randn(2, 5), labels, 1.0)


@pytest.mark.parametrize("options", [{"hidden_size": 0}, {"weight": 0.0}])
def test_an_option_without_sense_is_refused(options):
    [(key, value)] = options.items()
    with pytest.raises(ValueError, match=f"adversary_options: {key}={value} must be"):
        Adversary(5, **options)


def test_an_encoder_unlearns_what_tells_the_domain():
    domains = torch.arange(64) % 2
    clips = torch.randn(64, 4)
    clips[:, 0] = 4 * domains.float() - 2
    encoder = nn.Linear(4, 3, bias=False)
    adversary = Adversary(3, hidden_size=16, weight=1.0)
    optimizer = torch.optim.Adam([*encoder.parameters(), *adversary.parameters()], lr=0.02)

    def between_the_domains():
        means = [embedding[domains == domain].mean(dim=0) for domain in (0, 1)]
        return (means[0] - means[1]).norm().item()

    distances = []
    for _ in range(400):
        optimizer.zero_grad()
        embedding = nn.functional.normalize(encoder(clips))
        distances.append(between_the_domains())
        adversary(embedding, domains, 1.0).backward()
        optimizer.step()
    assert distances[0] > 1
    assert distances[-1] < distances[0] / 2


# In a detector


def test_the_losses_of_head_and_adversaries_are_added(tiny_model, batch):
    model = tiny_model(**BOTH, adversary_options={"weight": 0.5, "hidden_size": 6})
    alone = tiny_model(channels=["far", "near"], layers=[2, 1])
    alone.load_state_dict(model.state_dict(), strict=False)
    model.domain_adversary.balance([3, 1])
    projected = model.asd(**batch).projected_embedding  # (B, views, 1, D): far 2, 1, near 2, 1
    channels = torch.cat([projected[:, 2:].mean((1, 2)), projected[:, :2].mean((1, 2))])
    domain = model.domain_adversary(projected.mean(dim=(1, 2)), DOMAINS, 1.0)
    channel = model.channel_adversary(channels, torch.tensor([0, 0, 0, 1, 1, 1]), 1.0)
    plain, output = (
        alone(**batch, labels=LABELS),
        model(**batch, labels=LABELS, domain_labels=DOMAINS),
    )
    torch.testing.assert_close(output.loss, plain.loss + domain + channel)
    assert torch.equal(output.logits, plain.logits)


def test_the_encoder_hears_the_adversary_as_far_as_training_has_come(tiny_model, batch):
    model = tiny_model(adversaries=["domain"], adversary_options={"weight": 2.0})
    plain = tiny_model()
    plain.load_state_dict(model.state_dict(), strict=False)

    def gradient(of, progress):
        of.set_progress(progress)
        of.zero_grad()
        of(**batch, labels=LABELS, domain_labels=DOMAINS).loss.backward()
        return of.asd.encoder.layers[1].fc2.weight.grad.clone()

    head_only = gradient(plain, 0.5)
    torch.testing.assert_close(gradient(model, 0.0), head_only)
    full, half = (gradient(model, p) - head_only for p in (1.0, 0.05))
    assert full.abs().max() > 1e-4
    ratio = reversal_strength(0.05) / reversal_strength(1.0)
    torch.testing.assert_close(half, ratio * full, rtol=1e-3, atol=1e-6)


def test_every_parameter_receives_a_gradient(tiny_model, batch):
    model = tiny_model(**BOTH).train()
    model(**batch, labels=LABELS, domain_labels=torch.tensor([-1, -1, -1])).loss.backward()
    for name, parameter in model.named_parameters():
        assert parameter.grad is not None, name
        assert torch.isfinite(parameter.grad).all(), name


def test_a_domain_adversary_needs_domains_beside_labels(tiny_model, batch):
    model = tiny_model(adversaries=["domain"])
    assert model(**batch).loss is None
    with pytest.raises(ValueError, match="domain_labels is missing"):
        model(**batch, labels=LABELS)


def test_without_adversaries_domains_change_nothing(tiny_model, batch):
    model = tiny_model()
    assert model.domain_adversary is None
    assert model.channel_adversary is None
    losses = [model(**batch, labels=LABELS, domain_labels=d).loss for d in (None, DOMAINS)]
    assert torch.equal(*losses)


def test_an_adversary_is_saved_with_its_weights_of_the_classes(tmp_path, tiny_model, batch):
    model = tiny_model(**BOTH)
    model.domain_adversary.balance([990, 10])
    perturbed(model).save_pretrained(tmp_path)
    reloaded = AsdForProxyClassification.from_pretrained(tmp_path)
    labels = {"labels": LABELS, "domain_labels": DOMAINS}
    assert torch.equal(model(**batch, **labels).loss, reloaded(**batch, **labels).loss)
    weights = reloaded.domain_adversary.class_weights
    assert torch.equal(weights, model.domain_adversary.class_weights)
    _, info = AsdModel.from_pretrained(tmp_path, output_loading_info=True)
    assert not info["unexpected_keys"]


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"adversaries": ["speed"]}, r"among \['domain', 'channel'\]"),
        ({"adversaries": ["domain", "domain"]}, "each at most once"),
        ({"adversary_options": {"weight": 1.0}}, "came without adversaries"),
        ({"adversaries": ["channel"]}, r"only \['near'\] is encoded"),
        (
            {"adversaries": ["domain"], "adversary_options": {"size": 1}},
            "unknown to adversary='domain', which takes .*hidden_size.*weight",
        ),
    ],
)
def test_a_wrong_configuration_is_refused(options, message, tiny_config):
    with pytest.raises(StrictDataclassClassValidationError, match=message):
        tiny_config(**options)

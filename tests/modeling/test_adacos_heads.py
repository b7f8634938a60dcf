"""AdaCos, sub-cluster AdaCos and AdaProj, each derived a second time in plain loops."""

import math

import numpy as np
import pytest
import torch

from modeling.heads import AdaCosHead, AdaProjHead, SubclusterAdaCosHead
from tests.modeling.test_heads import embedding_at

LABELS = torch.tensor([0, 2, 1, 0, 2])
SOFT = torch.tensor(
    [[0.7, 0.3, 0.0], [0.0, 0.0, 1.0], [0.2, 0.5, 0.3], [1.0, 0.0, 0.0], [0.0, 0.5, 0.5]],
    dtype=torch.float64,
)
ADAPTIVE = {"adaptive_scale": True}


@pytest.fixture(autouse=True)
def seed():
    torch.manual_seed(0)


# The second derivation: float64, loops over clips and classes


def cosine(x, w):
    return float(x @ w / np.linalg.norm(x) / np.linalg.norm(w))


def centre_cosines(embedding, weight):
    """(B, D), (C, K, D) -> (B, C, K)."""
    return np.array([[[cosine(x, w) for w in own] for own in weight] for x in embedding])


def projection_cosines(embedding, weight):
    """(B, D), (C, K, D) -> (B, C, 1)."""
    result = np.empty((len(embedding), len(weight), 1))
    for i, x in enumerate(embedding):
        for c, basis in enumerate(weight):
            unit = [w / np.linalg.norm(w) for w in basis]
            result[i, c] = cosine(x, sum((x @ w) * w for w in unit))
    return result


def cross_entropy(cosines, shares, scale):
    """The softmax over all vectors of all classes, its probabilities summed within each class."""
    total = 0.0
    for clip, y in zip(cosines, shares, strict=True):
        e = np.exp(scale * clip)
        for c in range(len(clip)):
            total -= y[c] * math.log(e[c].sum() / e.sum())
    return total / len(cosines)


def moved_scale(cosines, shares, scale, *, min_scale=1.0, with_own=False):
    """AdaCos's update; `with_own` is sub-cluster AdaCos's."""
    sums, own_angles = [], []
    for clip, y in zip(cosines, shares, strict=True):
        total = angle = 0.0
        for c, values in enumerate(clip):
            for value in values:
                total += (1.0 if with_own else 1 - y[c]) * math.exp(scale * value)
                angle += y[c] * math.acos(value)
        sums.append(total)
        own_angles.append(angle)
    middle = sorted(own_angles)[(len(own_angles) - 1) // 2]
    moved = math.log(sum(sums) / len(sums)) / math.cos(min(math.pi / 4, middle))
    return max(min_scale, moved)


every_head = pytest.mark.parametrize(
    ("make", "derive", "rule"),
    [
        (lambda: AdaCosHead(6, 3), centre_cosines, {}),
        (lambda: AdaProjHead(6, 3, num_basis_vectors=4), projection_cosines, {}),
        (
            lambda: SubclusterAdaCosHead(6, 3, num_subclusters=4, **ADAPTIVE),
            centre_cosines,
            {"with_own": True},
        ),
        (
            lambda: SubclusterAdaCosHead(
                6, 3, num_subclusters=4, trainable_centers=False, **ADAPTIVE
            ),
            centre_cosines,
            {"with_own": True},
        ),
    ],
    ids=["adacos", "adaproj", "subcluster", "subcluster_fixed_centers"],
)
hard_or_soft = pytest.mark.parametrize("labels", [LABELS, SOFT], ids=["hard", "soft"])


def as_shares(labels):
    return labels.numpy() if labels.is_floating_point() else np.eye(3)[labels.numpy()]


def as_classes(head):
    return head.weight.detach().double().numpy().reshape(3, -1, head.weight.shape[1])


def near_their_classes(head, labels):
    """Clips by 0.1 to 0.3 rad from one vector of their class, so that the angle decides."""
    shares = torch.from_numpy(as_shares(labels))
    first = torch.from_numpy(as_classes(head))[:, 0]  # (C, D)
    clips = torch.nn.functional.normalize(first)[shares.argmax(dim=1)]
    return 3 * (clips + 0.08 * torch.randn(clips.shape, dtype=torch.float64))


@every_head
@hard_or_soft
@pytest.mark.parametrize("near", [False, True])
@pytest.mark.parametrize("training", [False, True])
def test_loss_scale_and_gradients_equal_a_second_derivation(
    make, derive, rule, labels, near, training
):
    head = make().double().train(training)
    embedding = torch.randn(5, 6, dtype=torch.float64)
    embedding = (near_their_classes(head, labels) if near else embedding).requires_grad_()
    start, shares = embedding.detach().numpy(), as_shares(labels)
    weight, scale = as_classes(head), head.scale.item()
    loss = head(embedding, labels).loss
    loss.backward()
    if training:
        scale = moved_scale(derive(start, weight), shares, scale, **rule)
    np.testing.assert_allclose(head.scale.item(), scale, rtol=1e-12)
    np.testing.assert_allclose(
        loss.item(), cross_entropy(derive(start, weight), shares, scale), rtol=1e-12
    )

    def numeric(values, derived):  # the scale is a constant to the gradient
        gradient = np.empty_like(values)
        for place in np.ndindex(values.shape):
            step = np.zeros_like(values)
            step[place] = 1e-6
            gradient[place] = (derived(values + step) - derived(values - step)) / 2e-6
        return gradient

    by_embedding = numeric(start, lambda x: cross_entropy(derive(x, weight), shares, scale))
    np.testing.assert_allclose(embedding.grad.numpy(), by_embedding, rtol=1e-5, atol=1e-8)
    if isinstance(head.weight, torch.nn.Parameter):
        by_weight = numeric(weight, lambda w: cross_entropy(derive(start, w), shares, scale))
        gradient = head.weight.grad.numpy().reshape(weight.shape)
        np.testing.assert_allclose(gradient, by_weight, rtol=1e-5, atol=1e-8)


@every_head
@hard_or_soft
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_so_it_is_in_float32_and_for_bfloat16_embeddings(make, derive, rule, labels, dtype):
    head = make()
    embedding = torch.randn(5, 6).to(dtype)
    start, shares = embedding.double().numpy(), as_shares(labels)
    cosines = derive(start, as_classes(head))
    scale = moved_scale(cosines, shares, head.scale.item(), **rule)
    loss = head(embedding, labels).loss
    np.testing.assert_allclose(head.scale.item(), scale, rtol=1e-5)
    np.testing.assert_allclose(loss.item(), cross_entropy(cosines, shares, scale), rtol=1e-5)


@pytest.mark.parametrize("degrees", [0, 1, 45, 90, 151.35, 179, 180])
@pytest.mark.parametrize(
    "make",
    [
        lambda: AdaCosHead(4, 3, adaptive_scale=False),
        lambda: SubclusterAdaCosHead(4, 3, num_subclusters=3),
    ],
    ids=["adacos", "subcluster"],
)
def test_loss_and_gradient_at_awkward_angles(degrees, make):
    head = make().double()
    embedding = embedding_at(degrees, head.weight[0]).requires_grad_()
    loss = head(embedding, torch.tensor([0])).loss
    loss.backward()
    start, weight, scale = embedding.detach().numpy(), as_classes(head), head.scale.item()

    def derived(x):
        return cross_entropy(centre_cosines(x, weight), np.eye(3)[:1], scale)

    np.testing.assert_allclose(loss.item(), derived(start), rtol=1e-12)
    steps = 1e-6 * np.eye(4)[:, None]
    numeric = [(derived(start + step) - derived(start - step)) / 2e-6 for step in steps]
    np.testing.assert_allclose(embedding.grad[0].numpy(), numeric, rtol=1e-5, atol=1e-9)


# The scale


@every_head
def test_only_a_call_with_labels_in_training_moves_the_scale(make, derive, rule):
    head, embedding = make(), torch.randn(5, 6)
    first = head.scale.clone()
    head(embedding)
    head.eval()(embedding, LABELS)
    assert torch.equal(head.scale, first)
    head.train()(embedding, LABELS)
    assert not torch.equal(head.scale, first)


@every_head
def test_the_scale_is_kept_with_the_weights(make, derive, rule):
    head, embedding = make(), torch.randn(5, 6)
    for _ in range(3):
        head(embedding, LABELS)
    other = make()
    other.load_state_dict(head.state_dict())
    assert torch.equal(other.scale, head.scale)
    assert torch.equal(other(embedding).logits, head(embedding).logits)
    assert not any(parameter is head.scale for parameter in head.parameters())


@every_head
def test_two_batches_may_go_forward_before_the_first_goes_back(make, derive, rule):
    head = make()
    batches = torch.randn(2, 5, 6, requires_grad=True)
    losses = [head(batch, LABELS).loss for batch in batches]
    sum(losses).backward()
    assert torch.isfinite(batches.grad).all()


def test_the_first_scale_is_that_of_the_papers_and_has_a_floor():
    assert AdaCosHead(8, 80).scale.item() == pytest.approx(math.sqrt(2) * math.log(79))
    assert AdaProjHead(8, 80, num_basis_vectors=2).scale.item() == pytest.approx(
        math.sqrt(2) * math.log(79)
    )
    head = SubclusterAdaCosHead(8, 80)
    assert head.scale.item() == pytest.approx(math.sqrt(2) * math.log(80 * 16 - 1))
    for num_classes in (1, 2):  # of two, the formula gives 0
        assert AdaCosHead(8, num_classes).scale.item() == 1.0
    assert AdaCosHead(8, 2, min_scale=4.0).scale.item() == 4.0


def test_the_scale_of_two_opposite_classes_stays_at_its_floor():
    """ln B is -s there: without a floor the scale would turn negative, and the classes around."""
    head = AdaCosHead(4, 2, min_scale=2.0)
    head.weight.data[1] = -head.weight.data[0]
    for _ in range(3):
        head(head.weight.detach(), torch.tensor([0, 1]))
        assert head.scale.item() == 2.0


def test_the_angles_to_all_subclusters_of_a_clips_class_are_summed():
    """As in the author's code: by its nearest, or their mean, the scale would be another."""
    head = SubclusterAdaCosHead(3, 2, num_subclusters=2, min_scale=0.1, **ADAPTIVE)
    angles = [0.0, 0.4, 1.7, 2.9]
    head.weight.data = torch.tensor([[math.cos(a), math.sin(a), 0.0] for a in angles])
    first = head.scale.item()
    clip = torch.tensor([[math.cos(0.1), math.sin(0.1), 0.0]])
    head(clip, torch.tensor([0]))
    total = sum(math.exp(first * math.cos(a - 0.1)) for a in angles)
    assert head.scale.item() == pytest.approx(math.log(total) / math.cos(0.1 + 0.3), rel=1e-5)


def test_the_fixed_scale_never_moves():
    head = SubclusterAdaCosHead(6, 3)
    first = head.scale.clone()
    head(torch.randn(5, 6), LABELS)
    assert torch.equal(head.scale, first)


# Centres


def test_fixed_centers_are_no_parameter_and_are_kept_with_the_weights():
    head = SubclusterAdaCosHead(6, 3, trainable_centers=False)
    assert not list(head.parameters())
    assert head.state_dict()["weight"].shape == (48, 6)
    assert [name for name, _ in SubclusterAdaCosHead(6, 3).named_parameters()] == ["weight"]


def test_one_subcluster_per_class_is_adacos():
    sub, plain = SubclusterAdaCosHead(6, 3, num_subclusters=1), AdaCosHead(6, 3)
    sub.load_state_dict(plain.state_dict())
    embedding = torch.randn(5, 6)
    torch.testing.assert_close(sub.eval()(embedding), plain.eval()(embedding))


def test_adaproj_gives_every_embedding_in_a_span_of_orthogonal_vectors_the_cosine_1():
    head = AdaProjHead(6, 2, num_basis_vectors=2)
    head.weight.data = torch.eye(6)[:4]
    inside = torch.tensor([[3.0, -4.0, 0, 0, 0, 0], [0, 0, 1.0, 2.0, 0, 0]])
    torch.testing.assert_close(head.cosine(inside), torch.eye(2))
    outside = torch.tensor([[1.0, 0, 0, 0, 0, 1.0]])
    torch.testing.assert_close(head.cosine(outside), torch.tensor([[0.5**0.5, 0.0]]))

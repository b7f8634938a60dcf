import math
import re

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from torch.utils._python_dispatch import TorchDispatchMode

from modeling.heads import HEADS, ArcFaceHead

every_head = pytest.mark.parametrize("name", HEADS)
# What fits into embeddings of size 8.
SMALL = {"adaproj": {"num_basis_vectors": 3}, "subcluster_adacos": {"num_subclusters": 4}}
DEGREES = [0, 1, 20, 45, 90, 120, 150, 151.3, 151.4, 160, 179, 180]  # 180 - 0.5 rad is 151.35


@pytest.fixture(autouse=True)
def seed():
    torch.manual_seed(0)


def make_head(name, embedding_size=8, num_classes=3):
    return HEADS[name](embedding_size, num_classes, **SMALL.get(name, {}))


def arcface_logits(embedding, weight, labels, *, margin, scale):
    """The logits once more in float64, from angles: (B, D), C times (K, D), soft labels (B, C)."""
    logits = np.empty((len(embedding), len(weight)))
    for i, x in enumerate(embedding):
        for c, centres in enumerate(weight):
            cosine = max(x @ w / np.linalg.norm(x) / np.linalg.norm(w) for w in centres)
            angle = math.acos(min(1.0, max(-1.0, cosine)))
            beyond = angle >= math.pi - margin
            shifted = cosine - margin * math.sin(margin) if beyond else math.cos(angle + margin)
            logits[i, c] = scale * (labels[i, c] * shifted + (1 - labels[i, c]) * cosine)
    return logits


def softmax_loss(logits, labels):
    return np.mean(np.log(np.exp(logits).sum(axis=1)) - (logits * labels).sum(axis=1))


def binary_loss(logits, labels):
    p = 1 / (1 + np.exp(-logits))
    return -np.mean(labels * np.log(p) + (1 - labels) * np.log(1 - p))


def embedding_at(degrees, centre, dtype=torch.float64):
    """Return an embedding (1, 4) of length 3 at an angle to a centre (4,)."""
    away = torch.tensor([0.3, -0.8, 0.1, 0.5], dtype=torch.float64)
    unit = F.normalize(centre.detach().double(), dim=0)
    away = F.normalize(away - (away @ unit) * unit, dim=0)
    angle = math.radians(degrees)
    return (3 * (math.cos(angle) * unit + math.sin(angle) * away))[None].to(dtype)


@pytest.mark.parametrize("degrees", DEGREES)
@pytest.mark.parametrize("num_subcenters", [1, 3, [3, 1, 2]])
@pytest.mark.parametrize("soft", [False, True])
def test_loss_and_gradient_equal_a_second_derivation(degrees, num_subcenters, soft):
    head = ArcFaceHead(4, 3, num_subcenters=num_subcenters, scale=5.0).double()
    embedding = embedding_at(degrees, head.weight[0]).requires_grad_()
    labels = torch.tensor([[0.7, 0.3, 0.0]], dtype=torch.float64) if soft else torch.tensor([0])
    loss = head(embedding, labels).loss
    loss.backward()

    counts = [num_subcenters] * 3 if isinstance(num_subcenters, int) else num_subcenters
    weight = np.split(head.weight.detach().numpy(), np.cumsum(counts)[:-1])
    shares = labels.numpy() if soft else np.eye(3)[labels.numpy()]

    def derived(x):
        logits = arcface_logits(x, weight, shares, margin=0.5, scale=5.0)
        return binary_loss(logits, shares) if soft else softmax_loss(logits, shares)

    start = embedding.detach().numpy()
    # On a centre the clamp makes the sine 1e-6 instead of 0.
    np.testing.assert_allclose(loss.item(), derived(start), rtol=1e-9 if degrees else 1e-5)
    if degrees in (0, 180):  # the angle has a kink there, and no derivative
        return
    steps = 1e-6 * np.eye(4)[:, None]
    numeric = [(derived(start + step) - derived(start - step)) / 2e-6 for step in steps]
    np.testing.assert_allclose(embedding.grad[0].numpy(), numeric, rtol=1e-4, atol=1e-7)


@pytest.mark.parametrize("degrees", [0.0, 1e-4, 151.3, 151.4, 179.9999, 180.0])
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
@pytest.mark.parametrize("soft", [False, True])
@pytest.mark.parametrize("name", sorted(set(HEADS) - {"os_scl"}))  # its angle is another one
def test_gradients_are_finite_on_a_class_centre_and_opposite_of_it(name, degrees, dtype, soft):
    options = {"num_basis_vectors": 2} if name == "adaproj" else SMALL.get(name, {})
    head = HEADS[name](4, 3, **options).to(dtype)
    embedding = embedding_at(degrees, head.weight[0], dtype).requires_grad_()
    labels = torch.tensor([[0.7, 0.3, 0.0]]) if soft else torch.tensor([0])
    loss = head(embedding, labels).loss
    loss.backward()
    for value in (loss, embedding.grad, head.weight.grad):
        assert torch.isfinite(value).all()


@pytest.mark.parametrize("length", [0.7, 1.0, 3.0, 10.0])
def test_gradients_are_finite_where_the_embedding_is_the_centre(length):
    head = ArcFaceHead(8, 3)
    embedding = (length * head.weight[:1].detach()).requires_grad_()
    head(embedding, torch.tensor([0])).loss.backward()
    assert torch.isfinite(embedding.grad).all()
    assert torch.isfinite(head.weight.grad).all()


@pytest.mark.parametrize("margin", [0.1, 0.5, 1.5])
def test_the_target_logit_falls_all_the_way_from_0_to_180_degrees(margin):
    head = ArcFaceHead(4, 3, margin=margin).double()
    embedding = torch.cat([embedding_at(t, head.weight[1]) for t in np.linspace(0, 180, 400)])
    target = head(embedding, torch.ones(400, dtype=torch.long)).logits[:, 1]
    # Within 1e-6 rad of the centre the root is clamped.
    assert (target.diff() < 0).all()


def test_margin_moves_only_the_target_logit():
    head = ArcFaceHead(8, 3, num_subcenters=2)
    embedding, labels = torch.randn(5, 8), torch.tensor([0, 1, 2, 0, 1])
    moved = head(embedding, labels).logits != head(embedding).logits
    assert torch.equal(moved, F.one_hot(labels, 3).bool())


def test_margin_zero_gives_scaled_cosines():
    head = ArcFaceHead(8, 3, margin=0.0)
    embedding, labels = torch.randn(5, 8), torch.tensor([0, 1, 2, 0, 1])
    cosine = F.cosine_similarity(embedding[:, None], head.weight[None], dim=2)
    torch.testing.assert_close(head(embedding, labels).logits, 30 * cosine)
    torch.testing.assert_close(head(embedding).logits, 30 * cosine)


@every_head
def test_one_hot_soft_labels_give_the_logits_of_integer_ones(name):
    head = make_head(name).eval()
    embedding, labels = torch.randn(5, 8), torch.tensor([0, 1, 2, 0, 1])
    soft, hard = head(embedding, F.one_hot(labels, 3).float()), head(embedding, labels)
    torch.testing.assert_close(soft.logits, hard.logits)
    if name != "arcface":  # which has another loss for soft labels
        torch.testing.assert_close(soft.loss, hard.loss)


def test_a_class_answers_with_its_nearest_centre():
    head = ArcFaceHead(8, 3, num_subcenters=4, scale=1.0)
    embedding = torch.randn(5, 8)
    for c in range(3):
        centres = head.weight[4 * c : 4 * c + 4]
        nearest = F.cosine_similarity(embedding[:, None], centres[None], dim=2).amax(dim=1)
        torch.testing.assert_close(head(embedding).logits[:, c], nearest)


@every_head
def test_the_logits_of_a_clip_do_not_depend_on_its_batch(name):
    head = make_head(name).eval()
    embedding = torch.randn(5, 8)
    alone = torch.cat([head(clip[None]).logits for clip in embedding])
    torch.testing.assert_close(head(embedding).logits, alone)
    assert head(embedding).loss is None


@every_head
def test_a_head_computes_in_float32_under_autocast_and_of_bfloat16_embeddings(name):
    head = make_head(name, 64).eval()
    embedding, labels = torch.randn(5, 64).bfloat16(), torch.tensor([0, 1, 2, 0, 1])
    expected = head(embedding.float(), labels)
    assert expected.logits.dtype == expected.loss.dtype == torch.float32
    for output in (head(embedding, labels), autocast(head, embedding, labels)):
        assert torch.equal(output.logits, expected.logits)
        assert torch.equal(output.loss, expected.loss)


def autocast(head, embedding, labels):
    with torch.autocast("cpu", dtype=torch.bfloat16):
        return head(embedding, labels)


@pytest.mark.parametrize("name", sorted(set(HEADS) - {"os_scl"}))  # it has layers, in their dtype
def test_a_bfloat16_head_computes_in_float32_of_its_rounded_weights(name):
    half = make_head(name, 64).to(torch.bfloat16).eval()
    embedding, labels = torch.randn(5, 64), torch.tensor([0, 1, 2, 0, 1])
    rounded = make_head(name, 64).eval()
    rounded.load_state_dict(half.state_dict())
    assert torch.equal(half(embedding, labels).logits, rounded(embedding, labels).logits)


@every_head
def test_a_bfloat16_head_gives_float32_logits_near_those_of_a_float32_one(name):
    head = make_head(name, 64).eval()
    embedding, labels = torch.randn(5, 64), torch.tensor([0, 1, 2, 0, 1])
    expected = head(embedding, labels).logits
    logits = head.to(torch.bfloat16)(embedding, labels).logits
    assert logits.dtype == torch.float32
    # 8 bits of mantissa, of vectors of 64 numbers, at a scale of up to 30
    torch.testing.assert_close(logits, expected, rtol=0, atol=0.3)


@every_head
@pytest.mark.parametrize("soft", [False, True])
def test_every_parameter_receives_a_gradient_even_where_no_two_clips_share_a_class(name, soft):
    head = make_head(name)
    labels = torch.tensor([0, 1, 2])
    head(torch.randn(3, 8), F.one_hot(labels).float() if soft else labels).loss.backward()
    for key, parameter in head.named_parameters():
        assert parameter.grad is not None, key
        assert torch.isfinite(parameter.grad).all(), key


@every_head
def test_two_classes_are_learnt(name):
    head = make_head(name, 32, num_classes=2)
    embedding = torch.randn(12, 32).requires_grad_()
    labels = torch.arange(12) % 2
    optimizer = torch.optim.Adam([embedding, *head.parameters()], lr=0.02)
    for _ in range(60):
        optimizer.zero_grad()
        head(embedding, labels).loss.backward()
        optimizer.step()
    logits = head(embedding, labels).logits
    assert torch.equal(logits.argmax(dim=1), labels)
    assert F.cross_entropy(logits, labels) < 0.5  # ln 2 = 0.69 is chance


@every_head
def test_a_single_class_and_a_single_clip_are_legal(name):
    head = make_head(name, num_classes=1)
    if name == "os_scl":
        with pytest.raises(ValueError, match=r"holds 1 clip, .* needs two per process"):
            head(torch.randn(1, 8), torch.tensor([0]))
        head.eval()
    output = head(torch.randn(1, 8, requires_grad=True), torch.tensor([0]))
    output.loss.backward()
    assert torch.isfinite(output.loss)
    for parameter in head.parameters():
        assert torch.isfinite(parameter.grad).all()


@every_head
@pytest.mark.parametrize("label", [-1, 3, -100])
def test_a_label_that_is_no_class_is_refused_with_the_range(name, label):
    with pytest.raises(ValueError, match=f"Labels range from .*{label}.* from 0 to 2"):
        make_head(name)(torch.randn(2, 8), torch.tensor([1, label]))


@every_head
def test_soft_labels_that_are_no_shares_are_refused(name):
    with pytest.raises(ValueError, match="shares from 0 to 1"):
        make_head(name)(torch.randn(1, 8), torch.tensor([[0.0, 1.5, 0.0]]))


@every_head
@pytest.mark.parametrize("labels", [torch.tensor([0]), torch.zeros(2, 4), torch.zeros(2, 3).long()])
def test_labels_of_another_shape_are_refused(name, labels):
    with pytest.raises(ValueError, match="labels have shape"):
        make_head(name)(torch.randn(2, 8), labels)


def test_training_parts_the_classes_by_more_than_the_margin():
    head = ArcFaceHead(8, 3, margin=0.5)
    embedding = torch.randn(6, 8).requires_grad_()
    labels = torch.tensor([0, 1, 2, 0, 1, 2])
    optimizer = torch.optim.Adam([embedding, *head.parameters()], lr=0.05)
    for _ in range(100):
        optimizer.zero_grad()
        head(embedding, labels).loss.backward()
        optimizer.step()
    angle = (head(embedding).logits / 30).acos()  # (6, 3)
    own = F.one_hot(labels, 3).bool()
    assert (angle[own] + 0.5 < angle.masked_fill(own, torch.inf).amin(dim=1)).all()


def test_all_subcenters_of_all_classes_are_one_product():
    """XJU's 114 sub-centres of 80 classes: 9,120 rows."""
    head = ArcFaceHead(16, 80, num_subcenters=114, margin=0.2)
    embedding, labels = torch.randn(5, 16), torch.tensor([0, 79, 3, 40, 79])
    products = []

    class Products(TorchDispatchMode):
        def __torch_dispatch__(self, function, types, args=(), kwargs=None):
            if function.overloadpacket in (torch.ops.aten.mm, torch.ops.aten.addmm):
                products.append([tuple(arg.shape) for arg in args])
            return function(*args, **(kwargs or {}))

    with Products(), torch.no_grad():
        logits = head(embedding, labels).logits
    assert products == [[(5, 16), (16, 80 * 114)]]
    weight = head.weight.detach().double().numpy().reshape(80, 114, 16)
    shares = np.eye(80)[labels]
    derived = arcface_logits(embedding.double().numpy(), weight, shares, margin=0.2, scale=30.0)
    np.testing.assert_allclose(logits.numpy(), derived, atol=1e-4)


@pytest.mark.parametrize(
    ("name", "options"),
    [
        ("arcface", {"num_subcenters": 0}),
        ("arcface", {"num_subcenters": [2, 0, 1]}),
        ("os_scl", {"num_subcenters": [2, 1]}),
        ("arcface", {"scale": 0.0}),
        ("adacos", {"min_scale": 0.0}),
        ("subcluster_adacos", {"num_subclusters": 0}),
        ("adaproj", {"num_basis_vectors": 8}),
        ("adaproj", {"num_basis_vectors": 0}),
        ("os_scl", {"temperature": -0.04}),
        ("os_scl", {"num_views": 3}),
    ],
)
def test_an_option_without_sense_is_refused(name, options):
    [(key, value)] = options.items()
    with pytest.raises(ValueError, match=re.escape(f"head_options: {key}={value} must be")):
        HEADS[name](8, 3, **options)

"""Input vectors, training steps and covariances, by plain derivations in float64."""

from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest
import torch
from accelerate import Accelerator
from torch import nn

from nearfar import autoencoder_states
from nearfar.autoencoder_states import (
    UnfinishedState,
    finished_path,
    read_state,
    unfinished_path,
    write_state,
)
from nearfar.autoencoder_training import (
    StackedFrames,
    hear,
    residual_covariances,
    train_network,
)
from nearfar.training import TrainingInterruptedError
from nearfar.training_options import TrainingOptions

BINS, STACKED = 4, 3


class Fake(nn.Module):
    """An "autoencoder" with one linear map, which keeps the covariances it is given."""

    def __init__(self) -> None:
        super().__init__()
        self.linear = nn.Linear(BINS * STACKED, BINS * STACKED)
        self.covariances: dict[str | None, torch.Tensor] = {}

    def forward(self, vectors: torch.Tensor) -> torch.Tensor:
        return self.linear(vectors)

    def set_covariance(self, domain: str | None, covariance: torch.Tensor) -> None:
        self.covariances[domain] = covariance


def stacked(lengths: list[int], domains: list[str | None], *, seed: int = 0) -> StackedFrames:
    """Return what `hear` makes of clips of so many frames of noise, padded in batches of two."""
    generator = torch.Generator().manual_seed(seed)
    clips = [torch.randn(n, BINS, generator=generator) for n in lengths]

    def log_mel(near_values, far_values, attention_mask, has_far):
        pair = [clips[i] for i in near_values.tolist()]
        padded = torch.full((len(pair), max(map(len, pair)), BINS), torch.nan)
        for i, clip in enumerate(pair):
            padded[i, : len(clip)] = clip
        return {"near": padded}, torch.tensor([len(clip) for clip in pair])

    config = SimpleNamespace(channels=["near"], num_stacked_frames=STACKED)
    loader = [
        {"near_values": ids, "far_values": None, "attention_mask": None, "has_far": None}
        for ids in torch.arange(len(clips)).split(2)
    ]
    model = SimpleNamespace(config=config, log_mel=log_mel)
    return hear(model, loader, domains, torch.device("cpu"))["near"]


@pytest.fixture
def unfinished(tmp_path: Path) -> UnfinishedState:
    return UnfinishedState(read=None, write=tmp_path / "state", digest="digest")


def test_a_vector_is_consecutive_frames_of_one_clip() -> None:
    lengths = [5, 3, 7, 4]
    data = stacked(lengths, ["source", None, "target", "source"])
    assert len(data) == 3 + 1 + 5 + 2
    vectors = data.vectors(torch.arange(len(data)))
    assert torch.isfinite(vectors).all()  # nothing of the padding
    row = 0
    for first, length in zip(np.cumsum([0, *lengths]), lengths, strict=False):
        for t in range(length - STACKED + 1):
            expected = torch.cat([data.frames[first + t + k] for k in range(STACKED)])
            assert torch.equal(vectors[row], expected)
            row += 1
    named = [data.domains[i] for i in data.domain_ids.tolist()]
    assert named == ["source"] * 3 + [None] + ["target"] * 5 + ["source"] * 2


def test_covariances_are_the_described_ones() -> None:
    """Ten target clips beside many source clips, batches of both, in plain loops."""
    domains: list[str | None] = ["source"] * 25 + ["target"] * 10
    data = stacked([6] * 35, domains)
    network = Fake()
    order = torch.randperm(len(data), generator=torch.Generator().manual_seed(1))
    batches = order.split(16)
    found = residual_covariances(network, data, batches)
    assert set(found) == {"source", "target"}

    weight = network.linear.weight.detach().double().numpy()
    bias = network.linear.bias.detach().double().numpy()
    all_vectors = data.vectors(torch.arange(len(data))).double().numpy()
    for domain, covariance in found.items():
        total, count = np.zeros((BINS, BINS)), 0
        for batch in batches:
            rows = [r for r in batch.tolist() if data.domains[data.domain_ids[r]] == domain]
            frames = []
            for r in rows:
                residual = weight @ all_vectors[r] + bias - all_vectors[r]
                frames += [residual[k * BINS : (k + 1) * BINS] for k in range(STACKED)]
            for frame in frames:
                centred = frame - np.mean(frames, axis=0)
                total += np.outer(centred, centred)
            count += len(frames)
        assert count == STACKED * 4 * domains.count(domain)
        np.testing.assert_allclose(covariance.numpy(), total / (count - 1), rtol=1e-5, atol=1e-8)


def plain_adam(weight, bias, batches, vectors, *, rate):
    """Adam by its paper (Kingma and Ba, 2015), on the mean squared error of one linear map."""
    moments = [[np.zeros_like(p), np.zeros_like(p)] for p in (weight, bias)]
    for step, rows in enumerate(batches, start=1):
        x = vectors[rows]
        error = 2 * (x @ weight.T + bias - x) / x.size
        gradients = (error.T @ x, error.sum(axis=0))
        for p, g, m in zip((weight, bias), gradients, moments, strict=True):
            m[0] = 0.9 * m[0] + 0.1 * g
            m[1] = 0.999 * m[1] + 0.001 * g**2
            root = np.sqrt(m[1] / (1 - 0.999**step)) + 1e-8
            p -= rate * m[0] / (1 - 0.9**step) / root
    return weight, bias


def test_training_is_adam_on_the_mean_squared_error_of_the_rows_that_do_not_validate(
    unfinished: UnfinishedState,
) -> None:
    data = stacked([6] * 10, ["source"] * 8 + ["target"] * 2)
    options = TrainingOptions(
        num_train_epochs=2, train_batch_size=9, learning_rate=0.01, validation_share=0.25, seed=3
    )
    network = train_network(Fake, data, options, Accelerator(), "2026/fan/00", unfinished)

    training = torch.randperm(40, generator=torch.Generator().manual_seed(3))[10:]
    generator = torch.Generator().manual_seed(3)
    batches = []
    for _ in range(2):
        shuffled = training[torch.randperm(30, generator=generator)]
        batches += [rows.numpy() for rows in shuffled.split(9)]
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(3)
        start = Fake()
    weight, bias = plain_adam(
        start.linear.weight.detach().double().numpy().copy(),
        start.linear.bias.detach().double().numpy().copy(),
        batches,
        data.vectors(torch.arange(40)).double().numpy(),
        rate=0.01,
    )
    np.testing.assert_allclose(network.linear.weight.detach().numpy(), weight, atol=1e-5)
    np.testing.assert_allclose(network.linear.bias.detach().numpy(), bias, atol=1e-5)
    assert set(network.covariances) == {"source", "target"}


def test_torchs_random_state_is_left_alone(
    unfinished: UnfinishedState,
) -> None:
    state = torch.random.get_rng_state()
    options = TrainingOptions(num_train_epochs=1)
    train_network(Fake, stacked([6] * 4, ["source"] * 4), options, Accelerator(), "fan", unfinished)
    assert torch.equal(torch.random.get_rng_state(), state)


def test_a_loss_that_is_not_finite_stops_training_by_name(
    unfinished: UnfinishedState,
) -> None:
    data = stacked([6] * 4, ["source"] * 4)
    data.frames[5] = torch.nan
    options = TrainingOptions(num_train_epochs=3)
    with pytest.raises(FloatingPointError, match=r"loss of 2026/fan/00 became nan in epoch 1"):
        train_network(Fake, data, options, Accelerator(), "2026/fan/00", unfinished)


def test_too_few_vectors_are_refused_by_name(
    unfinished: UnfinishedState,
) -> None:
    data = stacked([STACKED], ["source"])
    with pytest.raises(ValueError, match=r"2026/fan/00 has 1 input vectors, 1 of them to train"):
        train_network(Fake, data, TrainingOptions(), Accelerator(), "2026/fan/00", unfinished)


def test_a_batch_of_one_vector_is_left_out(
    unfinished: UnfinishedState,
) -> None:
    """Batch normalisation would refuse it."""
    data = stacked([STACKED + 4] * 2, ["source"] * 2)  # 10 vectors
    options = TrainingOptions(num_train_epochs=1, train_batch_size=3, validation_share=0.0)

    class Normalised(Fake):
        def __init__(self) -> None:
            super().__init__()
            self.linear = nn.Sequential(self.linear, nn.BatchNorm1d(BINS * STACKED))

    network = train_network(Normalised, data, options, Accelerator(), "fan", unfinished)
    assert network.linear[1].num_batches_tracked.item() == 3


def test_interrupted_at_any_epoch_and_resumed_is_as_never_interrupted(tmp_path: Path) -> None:
    data = stacked([6] * 10, ["source"] * 8 + ["target"] * 2)
    options = TrainingOptions(
        num_train_epochs=5, train_batch_size=9, learning_rate=0.01, validation_share=0.1
    )
    accelerator = Accelerator()

    class Normalised(Fake):
        def __init__(self) -> None:
            super().__init__()
            self.linear = nn.Sequential(self.linear, nn.BatchNorm1d(BINS * STACKED))

    def learn(read: str | None, write: str, interrupted: tuple[int, ...] = ()) -> Fake:
        files = UnfinishedState(
            read=None if read is None else tmp_path / read, write=tmp_path / write, digest="digest"
        )
        return train_network(Normalised, data, options, accelerator, "fan", files, interrupted)

    whole = learn(None, "whole")
    for epoch in range(1, 6):  # each process does one epoch, and is stopped
        with pytest.raises(TrainingInterruptedError, match=f"after epoch {epoch} of 5"):
            learn("pieces" if epoch > 1 else None, "pieces", (15,))
    pieces = learn("pieces", "pieces")
    for name, tensor in whole.state_dict().items():
        assert torch.equal(tensor, pieces.state_dict()[name]), name
    assert pieces.covariances.keys() == whole.covariances.keys() == {"source", "target"}
    for domain, covariance in whole.covariances.items():
        assert torch.equal(covariance, pieces.covariances[domain])


def test_states_of_machines_do_not_meet_and_are_whole_or_absent(tmp_path, monkeypatch) -> None:
    names = ["2026/fan/00", "2026_fan_00", "2026/fan_00", "local/a.b c/00", "local/a.c/00"]
    paths = [finished_path(tmp_path, name) for name in names]
    paths += [unfinished_path(tmp_path, name, channel) for name in names for channel in ("n", "f")]
    assert len(set(paths)) == len(paths)
    for i, path in enumerate(paths):
        write_state(path, "digest", {"near.weight": torch.full((2,), float(i))})
    for i, path in enumerate(paths):
        state = read_state(path, "digest")
        assert state is not None
        assert state["near.weight"].tolist() == [i, i]
    assert read_state(finished_path(tmp_path, "2026/pump/00"), "digest") is None
    with pytest.raises(ValueError, match=r"fan.* was trained on other clips"):
        read_state(paths[0], "another digest")

    def fail(tensors, path, metadata):
        path.write_text("half")
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(autoencoder_states, "save_file", fail)
    with pytest.raises(OSError, match="No space left"):
        write_state(finished_path(tmp_path, "2026/valve/00"), "digest", {})
    assert len(list(tmp_path.iterdir())) == len(paths)

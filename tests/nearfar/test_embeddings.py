"""One extractor and one table: the same rows in the same order, however the clips come."""

from collections.abc import Iterator
from types import SimpleNamespace
from typing import Any

import datasets
import numpy as np
import pytest
import torch
from accelerate import Accelerator
from torch import Tensor, nn

from modeling import AsdConfig, AsdFeatureExtractor, AsdModel
from nearfar import embeddings
from nearfar.embeddings import CLIP_FIELDS, EmbeddingTable, extract_embeddings, model_inputs
from tests.tiny import TINY_ENCODER


class FakeExtractor:
    """Called like an AsdFeatureExtractor; refuses NaN."""

    sampling_rate = 16_000

    def __call__(
        self, near: Any, far: Any = None, *, sampling_rate: int, return_tensors: str | None = None
    ) -> dict[str, Any]:
        assert sampling_rate == self.sampling_rate
        near, far = ([x] if not isinstance(x, list) else x for x in (near, far))
        if any(np.isnan(clip).any() for clip in near):
            raise ValueError("the clip has samples that are NaN.")
        longest = max(map(len, near))
        values = {name: torch.zeros(len(near), longest) for name in ("near", "far", "mask")}
        for i, (near_clip, far_clip) in enumerate(zip(near, far, strict=True)):
            values["near"][i, : len(near_clip)] = torch.as_tensor(near_clip)
            values["mask"][i, : len(near_clip)] = 1
            if far_clip is not None:
                values["far"][i, : len(near_clip)] = torch.as_tensor(far_clip)
        return {
            "near_values": values["near"],
            "far_values": values["far"],
            "has_far": torch.tensor([clip is not None for clip in far]),
            "attention_mask": values["mask"],
        }


class FakeModel(nn.Module):
    """Called like an AsdModel; a clip's embedding says what the model was given for it."""

    def __init__(self) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.ones(1))
        self.batch_sizes: list[int] = []
        self.modes: list[bool] = []

    def forward(
        self,
        near_values: Tensor,
        far_values: Tensor,
        attention_mask: Tensor,
        front_end_strength: Tensor,
        has_far: Tensor,
    ) -> SimpleNamespace:
        self.batch_sizes.append(len(near_values))
        self.modes.append(self.training)
        assert not torch.is_grad_enabled()
        given = [near_values.sum(1), far_values.sum(1), attention_mask.sum(1)]
        given += [front_end_strength, has_far.float()]
        return SimpleNamespace(embedding=torch.stack(given, 1)[:, None, None] * self.weight)


def make_clips(num_clips: int = 11) -> list[dict[str, Any]]:
    """Return clips of three machines, of unequal lengths; every third has no far channel."""
    rng = np.random.default_rng(0)
    clips = []
    for i in range(num_clips):
        near, far = (
            (i + 1) * rng.integers(-4, 5, (2, 3 + i % 4)) / 4.0  # sums of these are exact
        ).astype(np.float32)
        clips.append(
            {
                "near": near,
                "far": None if i % 3 == 0 else far,
                "file_name": f"section_00_{i:04d}.wav",
                "machine": ("2026/valve/00", "2026/fan/00", "2026/fan/01")[i % 3],
                "machine_type": "unused",
                "domain": ("source", "target", None)[i % 3],
                "condition": ("normal", "anomaly", None)[i // 2 % 3],
                "attributes": f"v_{i}" if i % 2 else "",
            }
        )
    return clips


def make_table(num_clips: int = 11) -> EmbeddingTable:
    vectors = np.random.default_rng(0).normal(size=(num_clips, 2, 1, 3)).astype(np.float32)
    return EmbeddingTable.from_clips(vectors, make_clips(num_clips))


def assert_same(table: EmbeddingTable, other: EmbeddingTable) -> None:
    for name, column in vars(table).items():
        assert np.array_equal(column, getattr(other, name)), name


class MapStyle:
    """No list, but clips by position."""

    def __init__(self, clips: list[dict[str, Any]]) -> None:
        self.clips = clips

    def __len__(self) -> int:
        return len(self.clips)

    def __getitem__(self, index: int) -> dict[str, Any]:
        return self.clips[index]


def streamed(clips: list[dict[str, Any]]) -> Iterator[dict[str, Any]]:
    yield from clips


@pytest.mark.parametrize("batch_size", [1, 3, 8, 50])
@pytest.mark.parametrize("source", [list, MapStyle, streamed])
def test_rows_are_the_clips_in_their_order_whatever_the_batch_and_the_source(
    source: Any, batch_size: int
) -> None:
    clips, model = make_clips(), FakeModel()
    table = extract_embeddings(model, source(clips), FakeExtractor(), batch_size=batch_size)
    assert len(table) == len(clips)
    assert table.embedding.dtype == np.float32
    assert table.embedding.shape == (11, 1, 1, 5)
    expected = [
        (
            clip["near"].sum(),
            0.0 if clip["far"] is None else clip["far"].sum(),
            len(clip["near"]),
            1.0,
            clip["far"] is not None,
        )
        for clip in clips
    ]
    assert np.array_equal(table.embedding[:, 0, 0], np.array(expected, dtype=np.float32))
    columns = (table.file_names, table.machines, table.domains, table.conditions, table.attributes)
    for field, column in zip(CLIP_FIELDS, columns, strict=True):
        assert column.tolist() == [clip[field] for clip in clips]
    assert max(model.batch_sizes) <= batch_size  # memory is bounded by the batch
    assert sum(model.batch_sizes) == len(clips)


def test_a_dataset_in_memory_and_a_streamed_one_give_the_same_table() -> None:
    clips = make_clips()
    dataset = datasets.Dataset.from_list(
        [clip | {"near": clip["near"].tolist(), "far": None} for clip in clips]
    ).with_transform(
        lambda batch: batch | {"near": [np.asarray(x, dtype=np.float32) for x in batch["near"]]}
    )
    stream = datasets.IterableDataset.from_generator(streamed, gen_kwargs={"clips": clips}).map(
        lambda clip: clip | {"far": None}
    )
    tables = [
        extract_embeddings(FakeModel(), source, FakeExtractor(), batch_size=4)
        for source in (dataset, stream, [clip | {"far": None} for clip in clips])
    ]
    assert_same(tables[0], tables[2])
    assert_same(tables[1], tables[2])


def test_workers_and_an_accelerator_change_nothing() -> None:
    clips = make_clips()
    alone = extract_embeddings(FakeModel(), clips, FakeExtractor())
    options = {"accelerator": Accelerator(cpu=True), "num_workers": 1}
    assert_same(extract_embeddings(FakeModel(), clips, FakeExtractor(), **options), alone)


@pytest.mark.parametrize("source", [list, streamed])
def test_processes_share_the_clips_and_each_returns_the_whole_table(
    monkeypatch: pytest.MonkeyPatch, source: Any
) -> None:
    clips = make_clips()
    whole = extract_embeddings(FakeModel(), clips, FakeExtractor())
    shares: list[Any] = []

    def extract_as(rank: int) -> EmbeddingTable:
        process = SimpleNamespace(process_index=rank, num_processes=3, device="cpu")
        return extract_embeddings(
            FakeModel(), source(clips), FakeExtractor(), batch_size=2, accelerator=process
        )

    def keep(rows: Any) -> Any:
        shares.append(rows)
        return rows

    monkeypatch.setattr(embeddings, "gather_object", keep)
    for rank in range(3):
        extract_as(rank)
    assert sorted(i for [(known, _)] in shares for i, _ in known) == list(range(len(clips)))
    assert all(len(known) == len(vectors) for [(known, vectors)] in shares)
    gathered = shares[0] + shares[1] + shares[2]
    monkeypatch.setattr(embeddings, "gather_object", lambda _: list(gathered))
    assert_same(extract_as(1), whole)


def test_more_processes_than_clips_leave_some_with_nothing_to_do(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    clips = make_clips(1)
    whole = extract_embeddings(FakeModel(), clips, FakeExtractor())
    model = FakeModel()
    monkeypatch.setattr(
        embeddings,
        "gather_object",
        lambda own: [*own, ([(0, {f: clips[0][f] for f in CLIP_FIELDS})], whole.embedding)],
    )
    process = SimpleNamespace(process_index=1, num_processes=2, device="cpu")
    table = extract_embeddings(model, clips, FakeExtractor(), accelerator=process)
    assert model.batch_sizes == []
    assert_same(table, whole)


def test_each_machine_gets_its_own_front_end_strength_and_one_where_none_is_given() -> None:
    strengths = {"2026/valve/00": 0.0, "2026/fan/01": 0.25, "2026/pump/00": 0.5}
    table = extract_embeddings(
        FakeModel(), make_clips(), FakeExtractor(), front_end_strength=strengths
    )
    given = table.embedding[:, 0, 0, 3]
    assert given.tolist() == [strengths.get(machine, 1.0) for machine in table.machines]


def test_the_model_is_in_evaluation_mode_meanwhile_and_afterwards_as_it_was() -> None:
    model = FakeModel()
    model.frozen = nn.Sequential(nn.BatchNorm1d(2))
    model.train()
    model.frozen.eval()
    extract_embeddings(model, make_clips(), FakeExtractor(), batch_size=4)
    assert model.modes == [False, False, False]
    assert model.training
    assert not any(module.training for module in model.frozen.modules())

    bad = make_clips()
    bad[5]["near"][0] = np.nan
    with pytest.raises(ValueError, match="NaN"):
        extract_embeddings(model, bad, FakeExtractor())
    assert model.training


@pytest.mark.parametrize("batch_size", [1, 4])
def test_a_clip_that_cannot_be_used_is_named(batch_size: int) -> None:
    clips = make_clips()
    clips[6]["near"][1] = np.nan
    with pytest.raises(ValueError, match=r"^2026/valve/00/section_00_0006\.wav: the clip has"):
        extract_embeddings(FakeModel(), clips, FakeExtractor(), batch_size=batch_size)


def test_the_real_extractor_names_the_clip_and_its_fault() -> None:
    clips = make_clips(3)
    for clip in clips:
        clip["near"], clip["far"] = np.zeros(4000, dtype=np.float32), None
    clips[1]["far"] = np.zeros(3999, dtype=np.float32)
    with pytest.raises(ValueError, match=r"^2026/fan/00/section_00_0001\.wav: .* 3999 far"):
        model_inputs(clips, AsdFeatureExtractor())


def test_an_error_that_only_the_batch_has_is_not_hidden() -> None:
    class Moody(FakeExtractor):
        def __call__(self, near: Any, *args: Any, **kwargs: Any) -> dict[str, Any]:
            if isinstance(near, list):
                raise ValueError("not these together")
            return super().__call__(near, *args, **kwargs)

    with pytest.raises(ValueError, match=r"^not these together"):
        model_inputs(make_clips(2), Moody())


@pytest.mark.parametrize("clips", [[], iter([])])
def test_no_clips_are_refused(clips: Any) -> None:
    with pytest.raises(ValueError, match=r"There are no clips to embed\. Check data_dir"):
        extract_embeddings(FakeModel(), clips, FakeExtractor())


@pytest.fixture(scope="module")
def sounds() -> list[dict[str, Any]]:
    """Return five short clips of two channels, of unequal lengths."""
    rng = np.random.default_rng(1)
    clips = make_clips(5)
    for clip, length in zip(clips, (4000, 6400, 5001, 8000, 4000), strict=True):
        clip["near"], clip["far"] = 0.1 * rng.standard_normal((2, length)).astype(np.float32)
    return clips


def tiny_model(**options: Any) -> AsdModel:
    with torch.random.fork_rng():
        torch.manual_seed(0)
        return AsdModel(AsdConfig(encoder_config=TINY_ENCODER, **options))


def test_a_real_model_embeds_a_clip_alone_as_it_does_in_a_batch(
    sounds: list[dict[str, Any]],
) -> None:
    model = tiny_model(front_end="complex_least_squares", layers=[1, 2])
    together, alone = (
        extract_embeddings(model, sounds, AsdFeatureExtractor(), batch_size=size) for size in (5, 1)
    )
    assert together.embedding.shape == (5, 2, 1, 32)
    # float32 sums over a padded batch are taken in another order
    np.testing.assert_allclose(together.embedding, alone.embedding, rtol=0, atol=1e-4)
    assert np.abs(together.embedding[0] - together.embedding[4]).max() > 0.01  # and clips differ


def test_strength_zero_makes_a_real_model_hear_near_alone(sounds: list[dict[str, Any]]) -> None:
    extractor = AsdFeatureExtractor()
    model = tiny_model(front_end="complex_least_squares")
    strengths = dict.fromkeys({clip["machine"] for clip in sounds}, 0.0)
    off = extract_embeddings(model, sounds, extractor, front_end_strength=strengths)
    on = extract_embeddings(model, sounds, extractor)
    near = extract_embeddings(model, [clip | {"far": None} for clip in sounds], extractor)
    assert np.array_equal(off.embedding, near.embedding)
    assert np.abs(on.embedding - near.embedding).max() > 0.001


def test_a_model_that_encodes_far_refuses_a_clip_without_it(sounds: list[dict[str, Any]]) -> None:
    model = tiny_model(channels=["near", "far"])
    clips = [*sounds[:2], sounds[2] | {"far": None}]
    with pytest.raises(ValueError, match=r"far_values is missing for clips \[2\]"):
        extract_embeddings(model, clips, AsdFeatureExtractor())
    assert extract_embeddings(model, sounds, AsdFeatureExtractor()).embedding.shape[1] == 2


def test_a_machine_is_selected_by_full_name_or_by_its_type() -> None:
    table = make_table()
    assert table.machine_names == ["2026/fan/00", "2026/fan/01", "2026/valve/00"]
    for name in ("valve", "2026/valve/00"):
        valve = table.select(name)
        assert valve.file_names.tolist() == [f"section_00_{i:04d}.wav" for i in (0, 3, 6, 9)]
        assert np.array_equal(valve.embedding, table.embedding[[0, 3, 6, 9]])


@pytest.mark.parametrize(
    ("name", "problem"),
    [("fan", "means more than one machine"), ("pump", "is not a machine here")],
)
def test_a_machine_that_cannot_be_selected_is_refused(name: str, problem: str) -> None:
    with pytest.raises(KeyError, match=f"{name!r} {problem}"):
        make_table().select(name)


def test_rows_are_taken_by_index_in_the_asked_order_and_by_mask() -> None:
    table = make_table()
    mask = np.zeros(11, dtype=bool)
    mask[[2, 7]] = True
    assert_same(table.take(mask), table.take([2, 7]))
    assert table.take([7, 2, 2]).file_names.tolist() == [
        f"section_00_{i:04d}.wav" for i in (7, 2, 2)
    ]
    assert len(table.take(np.zeros(11, dtype=bool))) == 0


def test_a_table_whose_columns_describe_other_clips_is_refused() -> None:
    columns = vars(make_table())
    with pytest.raises(ValueError, match=r"must describe the same clips .*'domains': \(10,\)"):
        EmbeddingTable(**(columns | {"domains": columns["domains"][:10]}))
    with pytest.raises(ValueError, match=r"embedding must be \(N, views, bands, size\)"):
        EmbeddingTable(**(columns | {"embedding": columns["embedding"][:, 0]}))
    with pytest.raises(ValueError, match="same clips"):
        EmbeddingTable.from_clips(columns["embedding"], make_clips(3))

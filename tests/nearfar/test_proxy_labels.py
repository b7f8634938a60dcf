"""Proxy classes: who shares one, how they are numbered, and clusters for want of attributes."""

from itertools import product
from typing import Any

import numpy as np
import pytest

from nearfar.embeddings import EmbeddingTable
from nearfar.proxy_labels import PARTS, ProxyLabels, pseudo_attributes, renewed_labels


def clip(
    machine: str = "2026/fan/00",
    attributes: str = "",
    domain: str | None = "source",
    condition: str | None = "normal",
) -> dict[str, Any]:
    return {
        "file_name": f"{attributes or 'clip'}.wav",
        "machine": machine,
        "attributes": attributes,
        "domain": domain,
        "condition": condition,
    }


CLIPS = [
    clip(machine, attributes, domain)
    for machine, attributes, domain in product(
        ("2026/valve/00", "2026/fan/00"), ("v_2", "v_1", ""), ("source", "target", None)
    )
]


def blobs(
    sizes: dict[tuple[str, str | None], list[int]], attributes: dict[str, str] | None = None
) -> tuple[EmbeddingTable, list[int]]:
    """Return shuffled clips around far-apart directions, and which direction each belongs to.

    Args:
        sizes: Per machine and domain, the clips around each direction.
        attributes: Of the machines that have some.
    """
    rng = np.random.default_rng(0)
    clips, vectors, directions = [], [], []
    for (machine, domain), counts in sizes.items():
        for direction, count in enumerate(counts):
            for _ in range(count):
                clips.append(clip(machine, (attributes or {}).get(machine, ""), domain))
                length = rng.uniform(1, 50)  # of no account: directions count
                vectors.append(length * (np.eye(8)[direction] + 0.05 * rng.normal(size=(1, 1, 8))))
                directions.append(direction)
    order = rng.permutation(len(clips))
    table = EmbeddingTable.from_clips(
        np.array(vectors, dtype=np.float32)[order], [clips[i] for i in order]
    )
    return table, [directions[i] for i in order]


def test_each_machine_attributes_and_domain_is_one_class() -> None:
    labels = ProxyLabels.from_clips([*CLIPS, *CLIPS[::-1]])
    assert labels.num_classes == len(CLIPS)
    assert labels.labels.dtype == np.int64
    assert sorted(labels.labels[: len(CLIPS)].tolist()) == list(range(len(CLIPS)))
    assert np.array_equal(labels.labels[: len(CLIPS)], labels.labels[len(CLIPS) :][::-1])


def test_a_label_is_the_place_of_its_name_which_says_the_parts() -> None:
    labels = ProxyLabels.from_clips(CLIPS)
    for row, label in zip(CLIPS, labels.labels, strict=True):
        parts = (row["machine"], row["attributes"] or "-", row["domain"] or "-")
        assert labels.class_names[label] == "|".join(parts)
    assert list(labels.class_names) == sorted(labels.class_names)


def test_numbering_does_not_depend_on_the_order_of_the_clips() -> None:
    order = np.random.default_rng(0).permutation(len(CLIPS))
    labels = ProxyLabels.from_clips(CLIPS)
    shuffled = ProxyLabels.from_clips([CLIPS[i] for i in order])
    assert shuffled.class_names == labels.class_names
    assert np.array_equal(shuffled.labels, labels.labels[order])


def test_an_unknown_domain_is_a_class_of_its_own() -> None:
    labels = ProxyLabels.from_clips([clip(domain=None), clip(domain="source"), clip(domain=None)])
    assert labels.class_names == ("2026/fan/00|-|-", "2026/fan/00|-|source")
    assert labels.labels.tolist() == [0, 1, 0]


@pytest.mark.parametrize(
    ("parts", "num_classes"),
    [(("machine",), 2), (("machine", "attributes"), 6), (("domain",), 3), (PARTS, 18), ((), 1)],
)
def test_only_the_chosen_parts_tell_classes_apart(parts: tuple[str, ...], num_classes: int) -> None:
    assert ProxyLabels.from_clips(CLIPS, parts=parts).num_classes == num_classes


def test_pseudo_attributes_stand_in_where_there_are_some_and_leave_the_clips_alone() -> None:
    clips = [clip(attributes="v_1"), clip(), clip()]
    labels = ProxyLabels.from_clips(clips, pseudo_attributes=[None, "pseudo_0", "pseudo_1"])
    assert labels.class_names == (
        "2026/fan/00|pseudo_0|source",
        "2026/fan/00|pseudo_1|source",
        "2026/fan/00|v_1|source",
    )
    assert labels.labels.tolist() == [2, 0, 1]
    assert [row["attributes"] for row in clips] == ["v_1", "", ""]


def test_unlabelled_training_clips_are_taken_as_the_normals_they_are_said_to_be() -> None:
    assert ProxyLabels.from_clips([clip(condition=None)]).num_classes == 1


def test_an_anomaly_is_refused_by_name() -> None:
    with pytest.raises(ValueError, match=r"bad\.wav is an anomaly: training sees normal clips"):
        ProxyLabels.from_clips([*CLIPS, clip(attributes="bad", condition="anomaly")])


def test_an_unknown_part_and_no_clips_are_refused() -> None:
    with pytest.raises(ValueError, match=r"label_parts \['speed'\] are not among \['machine'"):
        ProxyLabels.from_clips(CLIPS, parts=["machine", "speed"])
    with pytest.raises(ValueError, match="There are no training clips"):
        ProxyLabels.from_clips([])


def test_clusters_are_the_directions_of_the_embeddings() -> None:
    table, directions = blobs({("2026/fan/00", "source"): [20, 30, 10]})
    pseudo = pseudo_attributes(table, num_clusters=[3])
    pairs = set(zip(pseudo, directions, strict=True))
    assert len(pairs) == 3
    assert {name for name, _ in pairs} == {"pseudo_0", "pseudo_1", "pseudo_2"}


def test_a_small_domain_has_its_own_clusters_and_at_least_one() -> None:
    fan = "2026/fan/00"
    table, directions = blobs(
        {(fan, "source"): [40, 40], (fan, "target"): [4, 5], (fan, None): [2]}
    )
    pseudo = np.array(pseudo_attributes(table, num_clusters=[2], min_clips=4))
    for domain, num_clusters in (("source", 2), ("target", 2), (None, 1)):
        rows = np.flatnonzero(table.domains == domain)
        pairs = {(pseudo[row], directions[row]) for row in rows}
        assert len(pairs) == num_clusters
        assert {name for name, _ in pairs} == {f"pseudo_{i}" for i in range(num_clusters)}


@pytest.mark.parametrize(
    ("size", "num_clusters"), [(3, 1), (7, 1), (8, 2), (15, 3), (16, 4), (99, 4)]
)
def test_clusters_hold_enough_clips_in_the_mean(size: int, num_clusters: int) -> None:
    table, _ = blobs({("2026/fan/00", "source"): [size]})
    pseudo = pseudo_attributes(table, num_clusters=[4], min_clips=4)
    assert set(pseudo) == {f"pseudo_{i}" for i in range(num_clusters)}


def test_a_machine_with_attributes_keeps_them() -> None:
    table, _ = blobs(
        {("2026/fan/00", "source"): [10, 10], ("2026/valve/00", "source"): [10]},
        attributes={"2026/valve/00": "v_1"},
    )
    pseudo = pseudo_attributes(table, num_clusters=[2])
    for machine, name in zip(table.machines, pseudo, strict=True):
        assert (name is None) == (machine == "2026/valve/00")


def test_one_clip_with_attributes_is_enough_for_a_machine_to_keep_its_own() -> None:
    table, _ = blobs({("2026/fan/00", "source"): [10, 10]})
    table.attributes[3] = "v_1"
    assert pseudo_attributes(table) == [None] * 20


def test_the_seed_decides_the_clusters() -> None:
    table, _ = blobs({("2026/fan/00", "source"): [80]})  # no structure: clusters are arbitrary
    first, again, other = (pseudo_attributes(table, seed=seed) for seed in (0, 0, 1))
    assert first == again
    assert first != other


def test_an_embedding_of_zeros_is_clustered_without_a_nan() -> None:
    table, _ = blobs({("2026/fan/00", "source"): [6, 6]})
    table.embedding[0] = 0
    assert None not in pseudo_attributes(table, num_clusters=[2])


@pytest.mark.parametrize(
    ("parts", "same_as"),
    [
        (["section"], ["machine"]),
        (["attribute"], ["machine", "attributes"]),
        (["composite"], ["machine", "attributes", "domain"]),
        (["section", "attribute"], ["machine", "attributes"]),
    ],
)
def test_a_named_set_of_parts_is_its_parts_each_once(parts, same_as) -> None:
    named, spelt = (ProxyLabels.from_clips(CLIPS, parts=p) for p in (parts, same_as))
    assert named.class_names == spelt.class_names


def test_a_channel_is_a_part_of_the_class_where_it_is_asked_for() -> None:
    clips = [row | {"channel": channel} for channel in ("near", "far") for row in CLIPS]
    apart = ProxyLabels.from_clips(clips, parts=["composite", "channel"])
    together = ProxyLabels.from_clips(clips, parts=["composite"])
    assert apart.num_classes == 2 * together.num_classes == 2 * len(CLIPS)
    near, far = together.labels.reshape(2, -1)
    assert np.array_equal(near, far)


def test_of_several_numbers_of_clusters_each_domain_takes_its_best() -> None:
    table, directions = blobs(
        {("2026/fan/00", "source"): [20, 20, 20, 20], ("2026/fan/00", "target"): [20, 20]}
    )
    pseudo = np.array(pseudo_attributes(table, num_clusters=[2, 3, 4, 6]))
    for domain, best in (("source", 4), ("target", 2)):
        rows = table.domains == domain
        assert len(set(pseudo[rows])) == best
        pairs = set(zip(pseudo[rows], np.array(directions)[rows], strict=True))
        assert len(pairs) == best


@pytest.mark.parametrize("candidates", [[], [0], [-1, 4]])
def test_a_number_of_clusters_that_is_none_is_refused(candidates: list[int]) -> None:
    table, _ = blobs({("2026/fan/00", "source"): [5, 5]})
    with pytest.raises(ValueError, match="numbers from 1 on"):
        pseudo_attributes(table, num_clusters=candidates)


def test_renewed_classes_are_the_old_ones_where_the_clusters_are_and_follow_them_otherwise() -> (
    None
):
    sizes = {("2026/fan/00", "source"): [12, 10, 9], ("2026/fan/00", "target"): [6, 5]}
    table, directions = blobs(sizes | {("2026/pump/00", None): [4, 4]}, {"2026/pump/00": "v_1"})
    directions = np.array(directions)
    # a class per direction and domain, numbered as no k-means would
    numbers = {("source", 0): 7, ("source", 1): 0, ("source", 2): 3, ("target", 0): 5}
    numbers |= {("target", 1): 1, (None, 0): 2, (None, 1): 2}
    pairs = zip(table.domains, directions, strict=True)
    true = np.array([numbers[pair] for pair in pairs])
    assert np.array_equal(renewed_labels(table, true), true)
    mistaken = true.copy()
    mistaken[np.flatnonzero(true == 7)[:3]] = 0
    mistaken[np.flatnonzero(true == 1)[0]] = 5
    assert np.array_equal(renewed_labels(table, mistaken), true)


def test_a_renewed_class_of_near_is_that_of_far_with_its_own_number() -> None:
    table, directions = blobs({("2026/fan/00", "source"): [12, 10, 9]})
    near = np.array([4, 0, 2])[directions]
    far = np.array([1, 5, 3])[directions]
    mistaken = np.concatenate([near, far])
    for block in (mistaken[: len(near)], mistaken[len(near) :]):
        block[0] = block[np.flatnonzero(np.array(directions) != directions[0])[0]]
    renewed = renewed_labels(table, mistaken)
    assert np.array_equal(renewed, np.concatenate([near, far]))


def test_clips_that_are_all_alike_keep_known_classes() -> None:
    table, _ = blobs({("2026/fan/00", "source"): [8]})
    table.embedding[:] = 1.0
    labels = np.array([3, 3, 3, 3, 6, 6, 6, 6])
    assert set(renewed_labels(table, labels)) <= {3, 6}


def test_a_class_is_without_attributes_where_all_its_machines_are() -> None:
    clips = [clip("2026/fan/00", "v_1"), clip("2026/fan/00", ""), clip("2026/valve/00", "")]
    labels = ProxyLabels.from_clips(clips)
    bare = dict(zip(labels.class_names, labels.without_attributes.tolist(), strict=True))
    assert bare == {
        "2026/fan/00|v_1|source": False,
        "2026/fan/00|-|source": False,  # of a machine that has some
        "2026/valve/00|-|source": True,
    }
    pseudo = ProxyLabels.from_clips(clips, pseudo_attributes=[None, None, "pseudo_0"])
    assert pseudo.without_attributes.sum() == 1
    assert not ProxyLabels.from_clips(clips, parts=["domain"]).without_attributes.any()

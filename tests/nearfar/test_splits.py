"""Which clips are kept back for thresholds."""

from collections import Counter

import numpy as np
import pytest
from hypothesis import example, given
from hypothesis import strategies as st

from nearfar.splits import fold_numbers, held_out_rows, spread_rows, validation_rows


def groups_of(sizes: dict[tuple[str, str | None], int]) -> tuple[list[str], list[str | None]]:
    """Return shuffled machines and domains with so many clips of each pair."""
    pairs = [pair for pair, size in sizes.items() for _ in range(size)]
    order = np.random.default_rng(7).permutation(len(pairs))
    return [pairs[i][0] for i in order], [pairs[i][1] for i in order]


@given(
    sizes=st.lists(st.integers(2, 60), min_size=1, max_size=5),
    share=st.floats(0.0, 1.0, exclude_max=True),
    seed=st.integers(0, 100),
)
@example(sizes=[3, 4, 5, 40], share=0.99, seed=0)
@example(sizes=[3, 4, 5, 40], share=0.01, seed=0)
def test_every_group_gives_its_share_at_least_one_never_all_and_none_below_four(
    sizes: list[int], share: float, seed: int
) -> None:
    wanted = {(f"2026/m{i}/00", "source"): size for i, size in enumerate(sizes)}
    machines, domains = groups_of(wanted)
    held_out = held_out_rows(machines, domains, share=share, seed=seed)
    given_back = Counter(np.array(machines)[held_out].tolist())
    for (machine, _), size in wanted.items():
        count = given_back[machine]
        if size < 4 or share == 0:
            assert count == 0
        else:
            assert 1 <= count < size
            # within rounding, where neither bound holds
            assert count in (1, size - 1) or abs(count - share * size) <= 0.5


def test_a_machine_with_a_single_clip_is_refused_by_name() -> None:
    machines, domains = groups_of({("2026/fan/00", None): 1, ("2026/valve/00", "source"): 9})
    with pytest.raises(ValueError, match=r"fan/00 has 1 training clip.*Add normal"):
        held_out_rows(machines, domains, share=0.1, seed=0)


def test_the_share_is_taken_of_each_machine_and_domain_apart() -> None:
    machines, domains = groups_of(
        {
            ("2026/fan/00", "source"): 990,
            ("2026/fan/00", "target"): 10,
            ("2026/valve/00", "source"): 50,
            ("2026/valve/00", None): 20,
        }
    )
    held_out = held_out_rows(machines, domains, share=0.1, seed=0)
    counts = Counter(
        pair
        for pair, held in zip(zip(machines, domains, strict=True), held_out, strict=True)
        if held
    )
    assert counts == {
        ("2026/fan/00", "source"): 99,
        ("2026/fan/00", "target"): 1,
        ("2026/valve/00", "source"): 5,
        ("2026/valve/00", None): 2,
    }


def test_the_seed_alone_decides_the_choice() -> None:
    machines, domains = ["2026/fan/00"] * 100, ["source"] * 100
    first, again, other = (
        held_out_rows(machines, domains, share=0.2, seed=seed) for seed in (0, 0, 1)
    )
    assert np.array_equal(first, again)
    assert not np.array_equal(first, other)


def test_a_share_of_nothing_holds_nothing_out_and_no_clips_give_no_rows() -> None:
    assert not held_out_rows(["2026/fan/00"] * 20, ["source"] * 20, share=0.0, seed=0).any()
    assert held_out_rows([], [], share=0.1, seed=0).shape == (0,)


@pytest.mark.parametrize("share", [-0.1, 1.0, 10, float("nan")])
def test_a_share_that_leaves_no_references_is_refused(share: float) -> None:
    with pytest.raises(ValueError, match=r"held_out_share=.* must be in \[0, 1\)"):
        held_out_rows(["2026/fan/00"] * 10, ["source"] * 10, share=share, seed=0)


@pytest.mark.parametrize(
    ("size", "share", "count"), [(3, 0.5, 0), (4, 0.1, 1), (10, 0.25, 2), (4, 0.99, 3), (9, 0.0, 0)]
)
def test_each_class_gives_its_share_to_validation_and_a_small_one_nothing(
    size: int, share: float, count: int
) -> None:
    labels = np.array([0] * size + [1] * 40 + [2])
    chosen = validation_rows(labels, share=share, seed=0)
    assert chosen[:size].sum() == count
    assert chosen[size:-1].sum() == min(round(40 * share), 39)
    assert not chosen[-1]
    assert np.array_equal(chosen, validation_rows(labels, share=share, seed=0))


def test_validation_that_cannot_be_is_refused() -> None:
    with pytest.raises(ValueError, match="no proxy class has the 4 clips"):
        validation_rows(np.array([0, 0, 0, 1, 1]), share=0.2, seed=0)
    with pytest.raises(ValueError, match=r"validation_share=1.0 must be in \[0, 1\)"):
        validation_rows(np.array([0] * 9), share=1.0, seed=0)


@given(
    settings=st.lists(st.integers(0, 8), min_size=2, max_size=30),
    share=st.floats(0.0, 0.9),
    seed=st.integers(0, 20),
)
@example(settings=[0, 1, 2, 3, 4, 5, 6, 7, 8, 8], share=0.1, seed=0)  # Sander's target clips
def test_no_setting_loses_its_last_clip_and_others_go_in_its_place(
    settings: list[int], share: float, seed: int
) -> None:
    machines, domains = ["2026/Sander/00"] * len(settings), ["target"] * len(settings)
    attributes = [f"spd_{setting}" for setting in settings]
    plain = held_out_rows(machines, domains, share=share, seed=seed)
    spared = held_out_rows(machines, domains, share=share, seed=seed, attributes=attributes)
    kept = {a for a, held in zip(attributes, spared, strict=True) if not held}
    assert kept == set(attributes)
    can_go = len(settings) - len(set(settings))
    assert spared.sum() == min(plain.sum(), can_go)
    if all(a in {b for b, held in zip(attributes, plain, strict=True) if not held} for a in kept):
        assert np.array_equal(plain, spared)  # nothing to repair, nothing changed


def test_ten_clips_in_nine_settings_give_one_of_the_two_that_share_theirs() -> None:
    attributes = [f"spd_{i % 9}" for i in range(10)]
    for seed in range(10):
        held_out = held_out_rows(
            ["m"] * 10, ["target"] * 10, share=0.1, seed=seed, attributes=attributes
        )
        assert held_out.sum() == 1
        assert held_out[[0, 9]].any()


def test_folds_hold_every_clip_out_once_and_differ_by_one_clip_in_every_domain() -> None:
    machines, domains = groups_of(
        {
            ("2026/fan/00", "source"): 31,
            ("2026/fan/00", "target"): 3,
            ("2026/valve/00", None): 7,
        }
    )
    numbers = fold_numbers(machines, domains, num_folds=5, seed=0)
    for machine in set(machines):
        for kept in ([(machine, "source")], [(machine, "target")], [(machine, None)], None):
            pairs = zip(machines, domains, numbers, strict=True)
            of = Counter(n for m, d, n in pairs if m == machine and (not kept or (m, d) in kept))
            sizes = [of[number] for number in range(5)]
            assert max(sizes) - min(sizes) <= 1
    assert fold_numbers(machines, domains, num_folds=5, seed=0).tolist() == numbers.tolist()
    assert fold_numbers(machines, domains, num_folds=5, seed=1).tolist() != numbers.tolist()


@pytest.mark.parametrize(
    ("count", "num_folds", "message"),
    [
        (9, 1, "num_folds=1 must be 2 or more"),
        (2, 5, "fan/00 has 2 training clips, too few for 5 folds"),
        (3, 2, "fan/00 has 3 training clips, too few for 2 folds"),
    ],
)
def test_folds_that_would_leave_a_detector_too_little_are_refused(
    count: int, num_folds: int, message: str
) -> None:
    with pytest.raises(ValueError, match=message):
        fold_numbers(["2026/fan/00"] * count, [None] * count, num_folds=num_folds, seed=0)


def test_spread_rows_take_so_many_of_each_machine_evenly_spaced() -> None:
    machines = ["b"] * 9 + ["a"] * 2 + ["b"]
    assert spread_rows(machines, per_machine=4) == [0, 3, 6, 9, 10, 11]
    assert spread_rows(machines, per_machine=20) == list(range(12))
    assert spread_rows(np.array(["a"], dtype=object), per_machine=1) == [0]

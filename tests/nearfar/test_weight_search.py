"""Weight search: the grid is whole, the best is found, and the nested figure is honest."""

import itertools
import math
import sys
from types import ModuleType

import numpy as np
import pytest

from nearfar.metrics import official_score, section_metrics
from nearfar.weight_search import (
    MemberScores,
    bayesian_weights,
    format_search,
    search_weights,
    weight_grid,
)

MACHINES = ("2026/fan/00", "2026/pump/00", "2026/valve/00")


def machine(seed: int, shifts: tuple[float, ...], count: int = 15) -> MemberScores:
    """Return a machine whose member i puts anomalies `shifts[i]` deviations above normals."""
    rng = np.random.default_rng(seed)
    anomalous = np.tile([False, True], 2 * count)
    domains = np.repeat(np.array(["source", "target"], dtype=object), 2 * count)
    noise = rng.normal(size=(len(shifts), 4 * count))
    return MemberScores(anomalous, domains, noise + np.outer(shifts, anomalous))


def machines(*shifts: tuple[float, ...]) -> dict[str, MemberScores]:
    return {name: machine(i, s) for i, (name, s) in enumerate(zip(MACHINES, shifts, strict=True))}


def score(weights: tuple[float, ...], scores: MemberScores) -> tuple[float, float, float]:
    fused = sum(w * s for w, s in zip(weights, scores.normalized, strict=True))
    return section_metrics(scores.anomalous, fused, scores.domains)


@pytest.mark.parametrize(("num_members", "step"), [(2, 0.05), (3, 0.1), (4, 0.25), (2, 1.0)])
def test_a_grid_has_every_weight_vector_of_its_step_once(num_members: int, step: float) -> None:
    parts = round(1 / step)
    every = itertools.product(range(parts + 1), repeat=num_members)
    expected = {tuple(p / parts for p in point) for point in every if sum(point) == parts}
    grid = weight_grid(num_members, step)
    assert len(grid) == len(expected) == math.comb(parts + num_members - 1, num_members - 1)
    assert set(grid) == expected
    spread = [sum(w * w for w in weights) for weights in grid]
    assert spread == sorted(spread)


def test_the_grid_finds_what_a_plain_loop_finds() -> None:
    data = machines((2.0, 0.3), (1.0, 1.2), (0.2, 1.5))
    found = search_weights(data, step=0.1, num_resamples=20)
    best = max(
        (official_score([score((w, 1 - w), m) for m in data.values()]), -abs(w - 0.5), w)
        for w in (i / 10 for i in range(11))
    )
    assert found.optimistic.estimate == pytest.approx(best[0], abs=1e-12)
    assert found.weights[0] == pytest.approx(best[2])


def test_the_nested_figure_uses_weights_of_the_other_machines_only() -> None:
    data = machines((2.0, 0.3), (1.0, 1.2), (0.2, 1.5))
    found = search_weights(data, step=0.25, num_resamples=20)
    sections = []
    for name in MACHINES:
        others = {n: m for n, m in data.items() if n != name}
        expected = search_weights(others, step=0.25, num_resamples=20).weights
        assert found.nested_weights[name] == expected
        sections.append(score(expected, data[name]))
    assert found.nested.estimate == pytest.approx(official_score(sections), abs=1e-12)
    # What a machine's own labels say cannot change the weights that it is judged with.
    data[MACHINES[0]] = machine(9, (-3.0, 5.0))
    changed = search_weights(data, step=0.25, num_resamples=20)
    assert changed.nested_weights[MACHINES[0]] == found.nested_weights[MACHINES[0]]
    assert changed.weights != found.weights


def test_the_optimistic_figure_flatters_on_average() -> None:
    gains = []
    for seed in range(6):
        data = {
            f"2026/m{i}/00": machine(100 * seed + i, (0.5, 0.5, 0.5), count=10) for i in range(4)
        }
        found = search_weights(data, step=0.2, num_resamples=1)
        gains.append(found.optimistic.estimate - found.nested.estimate)
    assert np.mean(gains) > 0.005


def test_of_weights_that_do_equally_well_the_most_even_ones_are_taken() -> None:
    perfect = machines((50.0, 50.0), (50.0, 50.0), (50.0, 50.0))
    assert search_weights(perfect, step=0.25, num_resamples=1).weights == (0.5, 0.5)


def test_each_year_is_searched_by_its_own_score() -> None:
    data = {f"2020/m{i}/00": machine(i, (1.0, 0.5)) for i in range(2)}
    data = {  # 2020 has no domains
        name: MemberScores(m.anomalous, np.full(len(m.domains), None), m.normalized)
        for name, m in data.items()
    }
    found = search_weights(data, year=2020, step=0.5, num_resamples=20)
    assert found.optimistic.low <= found.optimistic.estimate <= found.optimistic.high
    with pytest.raises(ValueError, match=r"2020/m0/00: .*domains are neither"):
        search_weights(data, year=2026, step=0.5, num_resamples=20)


def test_both_figures_are_told_the_honest_one_first() -> None:
    found = search_weights(machines((2.0, 0.3), (1.0, 1.2), (0.2, 1.5)), num_resamples=20)
    described = found.describe()
    assert list(described)[:2] == ["nested", "optimistic"]
    assert described["method"] == "grid"
    assert described["step"] == 0.05
    assert described["nested_weights"].keys() == set(MACHINES)
    first, second = format_search(found).splitlines()
    assert first.startswith(f"nested     {100 * found.nested.estimate:.2f}, 95 % interval ")
    assert second.startswith(f"optimistic {100 * found.optimistic.estimate:.2f}, 95 % interval ")


def test_a_search_that_cannot_be_made_says_why() -> None:
    one = {MACHINES[0]: machine(0, (1.0, 1.0))}
    with pytest.raises(ValueError, match="on 1 machine, but leaving one out needs two"):
        search_weights(one)
    with pytest.raises(ValueError, match="scores of the same members, got"):
        search_weights(one | {MACHINES[1]: machine(0, (1.0, 1.0, 1.0))})
    two = machines((1.0, 1.0), (1.0, 1.0), (1.0, 1.0))
    with pytest.raises(ValueError, match=r"step=0\.3 does not divide 1"):
        search_weights(two, step=0.3)
    with pytest.raises(ValueError, match="method='random' is not one of 'grid', 'bayesian'"):
        search_weights(two, method="random")
    with pytest.raises(ValueError, match=r"0\.05 over 7 members has 230230 points.*'bayesian'"):
        weight_grid(7, 0.05)


def test_a_bayesian_search_without_optuna_names_the_extra(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "optuna", None)
    with pytest.raises(ValueError, match=r"pip install 'nearfar\[fusion\]'"):
        bayesian_weights(lambda weights: weights[0], 2, num_trials=3, seed=0)
    with pytest.raises(ValueError, match="num_trials=0 must be 1 or more"):
        bayesian_weights(lambda weights: weights[0], 2, num_trials=0, seed=0)


@pytest.fixture
def optuna() -> ModuleType:
    """Return Optuna; the test is skipped where it is not installed."""
    return pytest.importorskip("optuna", reason="the extra fusion is not installed")


def test_a_bayesian_search_comes_near_the_best_weights(optuna: ModuleType) -> None:
    goal = np.array([0.6, 0.3, 0.1])

    def objective(weights: tuple[float, ...]) -> float:
        return -float(np.abs(np.array(weights) - goal).sum())

    found = bayesian_weights(objective, 3, num_trials=60, seed=0)
    assert sum(found) == pytest.approx(1)
    assert np.abs(np.array(found) - goal).sum() < 0.15  # even weights are at 0.53


def test_the_same_seed_tries_the_same_weights_and_another_tries_others(
    optuna: ModuleType,
) -> None:
    tried: list[list[tuple[float, ...]]] = [[], [], []]
    for weights, seed in zip(tried, (0, 0, 1), strict=True):
        bayesian_weights(
            lambda w, weights=weights: weights.append(w) or w[0], 2, num_trials=15, seed=seed
        )
    assert tried[0] == tried[1]
    assert tried[0] != tried[2]


def test_a_search_leaves_optunas_log_level_as_it_was(optuna: ModuleType) -> None:
    before = optuna.logging.get_verbosity()
    bayesian_weights(lambda w: w[0], 2, num_trials=1, seed=0)
    assert optuna.logging.get_verbosity() == before


def test_the_first_bayesian_trial_has_even_weights(optuna: ModuleType) -> None:
    tried = []
    bayesian_weights(lambda w: tried.append(w) or 0.0, 4, num_trials=1, seed=0)
    assert tried == [pytest.approx((0.25,) * 4)]


def test_a_bayesian_search_is_nested_too(optuna: ModuleType) -> None:
    data = machines((2.0, 0.3), (1.0, 1.2), (0.2, 1.5))
    found = search_weights(data, method="bayesian", num_trials=15, seed=3, num_resamples=20)
    even = official_score([score((0.5, 0.5), m) for m in data.values()])
    assert found.optimistic.estimate >= even  # the first trial
    sections = [score(found.nested_weights[name], data[name]) for name in MACHINES]
    assert found.nested.estimate == pytest.approx(official_score(sections), abs=1e-12)
    assert found.describe()["num_trials"] == 15
    for name in MACHINES:  # chosen by the other machines alone
        others = {n: m for n, m in data.items() if n != name}
        again = search_weights(
            others, method="bayesian", num_trials=15, seed=3, num_resamples=1
        ).weights
        assert found.nested_weights[name] == again

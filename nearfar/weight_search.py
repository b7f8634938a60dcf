"""Search of a fusion's weights on development labels, with the figure that does not flatter it.

Weights chosen on the machines they are judged on look better than they are. So the search is also
nested: each machine is scored with weights that were chosen on the other machines only. The nested
figure is what to expect elsewhere, the optimistic one what the chosen weights give here.
"""

import itertools
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Literal

import numpy as np
from numpy.typing import NDArray

from nearfar.dcase_task2.bootstrap import BootstrapInterval, bootstrap_interval
from nearfar.dcase_task2.metrics import official_score, year_metrics
from nearfar.fusion import weighted_sum

SearchMethod = Literal["grid", "bayesian"]
MAX_GRID = 50_000

Weights = tuple[float, ...]


@dataclass(frozen=True, eq=False)
class MemberScores:
    """Normalised scores of one machine's labelled test clips.

    Attributes:
        anomalous: (N,) ground truth.
        domains: (N,) "source", "target" or None.
        normalized: (S, N), from `ScoreFusion.normalized`.
    """

    anomalous: NDArray[np.bool_]
    domains: NDArray[np.object_]
    normalized: NDArray[np.float64]


@dataclass(frozen=True)
class WeightSearch:
    """What a search found.

    Attributes:
        weights: The best on all machines: those to use.
        optimistic: Official score of these weights on the machines that chose them.
        nested: Official score when each machine is fused with its `nested_weights`.
        nested_weights: Per machine, the best on all other machines.
        method: "grid" or "bayesian".
        options: Of the method: "step", or "num_trials" and "seed".
    """

    weights: Weights
    optimistic: BootstrapInterval
    nested: BootstrapInterval
    nested_weights: dict[str, Weights]
    method: SearchMethod
    options: dict[str, Any]

    def describe(self) -> dict[str, Any]:
        """Return all of it as JSON values, the nested figure first."""
        return {
            "nested": self.nested._asdict(),
            "optimistic": self.optimistic._asdict(),
            "method": self.method,
            **self.options,
            "nested_weights": {name: list(w) for name, w in self.nested_weights.items()},
        }


def search_weights(
    machines: Mapping[str, MemberScores],
    *,
    year: int = 2026,
    method: SearchMethod = "grid",
    step: float = 0.05,
    num_trials: int = 200,
    seed: int = 0,
    num_resamples: int = 1000,
) -> WeightSearch:
    """Choose weights by the official score, and judge the choice by leaving machines out.

    Args:
        machines: Per machine ("2026/fan/00"), two or more.
        year: Whose official score.
        method: "grid" tries every weight vector of the step: two or three members; "bayesian" is
            Optuna's tree-structured Parzen estimator over softmax parameters: for more.
        step: Of the grid; 1 / step is a whole number.
        num_trials: Of one Bayesian search; there is one for each machine left out, and one more.
        seed: Of the Bayesian search and of the bootstrap.
        num_resamples: Of the bootstrap intervals.

    Raises:
        ValueError: Fewer than two machines, members that differ in number, an option out of range,
            a machine whose metrics are undefined (its name comes first), or Optuna is missing.
    """
    if len(machines) < 2:
        raise ValueError(
            f"Weights are searched on {len(machines)} machine, but leaving one out needs two or "
            "more. Give scores of more machines, or state the weights."
        )
    counts = {name: len(scores.normalized) for name, scores in machines.items()}
    if len(set(counts.values())) > 1:
        raise ValueError(f"Every machine needs scores of the same members, got {counts}.")
    search = _Search(machines, year)
    num_members = next(iter(counts.values()))
    chosen: Callable[[Sequence[str]], Weights]
    if method == "grid":
        grid = weight_grid(num_members, step)
        options: dict[str, Any] = {"step": step}

        def chosen(names: Sequence[str]) -> Weights:
            return max(grid, key=lambda weights: search.score(weights, names))
    elif method == "bayesian":
        options = {"num_trials": num_trials, "seed": seed}

        def chosen(names: Sequence[str]) -> Weights:
            def objective(weights: Weights) -> float:
                return search.score(weights, names)

            return bayesian_weights(objective, num_members, num_trials=num_trials, seed=seed)
    else:
        raise ValueError(f"method={method!r} is not one of 'grid', 'bayesian'.")
    names = list(machines)
    weights = chosen(names)
    nested = {left_out: chosen([n for n in names if n != left_out]) for left_out in names}

    def figure(of: Mapping[str, Weights]) -> BootstrapInterval:
        inputs = {
            name: (m.anomalous, m.domains, weighted_sum(of[name], m.normalized))
            for name, m in machines.items()
        }
        return bootstrap_interval(inputs, year=year, num_resamples=num_resamples, seed=seed)

    return WeightSearch(
        weights=weights,
        optimistic=figure(dict.fromkeys(names, weights)),
        nested=figure(nested),
        nested_weights=nested,
        method=method,
        options=options,
    )


def format_search(search: WeightSearch) -> str:
    """Return the two figures, in percent, the honest one first."""
    lines = []
    for name, figure in (("nested", search.nested), ("optimistic", search.optimistic)):
        estimate, low, high = (100 * value for value in figure)
        lines.append(f"{name:<11}{estimate:.2f}, 95 % interval {low:.2f} to {high:.2f}")
    weights = " ".join(f"{weight:.4g}" for weight in search.weights)
    lines[0] += "   (each machine fused with weights chosen on the others)"
    lines[1] += f"   (weights chosen on these machines: {weights})"
    return "\n".join(lines)


def weight_grid(num_members: int, step: float) -> list[Weights]:
    """Return every weight vector whose weights are multiples of a step, the most even ones first.

    So that of weights that do equally well the most even ones are chosen.

    Raises:
        ValueError: 1 / step is not a whole number, or the grid has more than 50,000 points.
    """
    parts = round(1 / step) if 0 < step <= 1 else 0
    if parts < 1 or abs(parts * step - 1) > 1e-9:
        raise ValueError(f"step={step} does not divide 1. Use such as 0.05 or 0.1.")
    size = 1
    for number in range(1, num_members):  # binomial(parts + members - 1, members - 1)
        size = size * (parts + number) // number
    if size > MAX_GRID:
        raise ValueError(
            f"A grid of step {step} over {num_members} members has {size} points, more than "
            f"{MAX_GRID}. Take a larger step, or method='bayesian'."
        )
    grid = []
    for bars in itertools.combinations(range(parts + num_members - 1), num_members - 1):
        ends = (-1, *bars, parts + num_members - 1)
        grid.append(tuple((b - a - 1) / parts for a, b in itertools.pairwise(ends)))
    return sorted(grid, key=lambda weights: (sum(w * w for w in weights), weights))


def bayesian_weights(
    objective: Callable[[Weights], float], num_members: int, *, num_trials: int, seed: int
) -> Weights:
    """Return the best weights that Optuna finds; the first trial has all members equal.

    Args:
        objective: To be as large as possible.
        num_members: S.
        num_trials: How many weight vectors are tried.
        seed: The same seed tries the same ones.

    Raises:
        ValueError: There is no trial, or Optuna is not installed.
    """
    if num_trials < 1:
        raise ValueError(f"num_trials={num_trials} must be 1 or more.")
    try:
        import optuna
    except ImportError as error:
        raise ValueError(
            "A Bayesian search of weights needs the package optuna: pip install 'nearfar[fusion]'. "
            "Two or three members need it not: method='grid'."
        ) from error

    def softmax(parameters: Mapping[str, float]) -> Weights:
        logits = np.array([parameters[f"member_{i}"] for i in range(num_members)])
        powers = np.exp(logits - logits.max())
        return tuple((powers / powers.sum()).tolist())

    def trial_score(trial: Any) -> float:  # noqa: ANN401 - an optuna.Trial, of an extra
        names = (f"member_{i}" for i in range(num_members))
        return objective(softmax({name: trial.suggest_float(name, -4.0, 4.0) for name in names}))

    verbosity = optuna.logging.get_verbosity()
    optuna.logging.set_verbosity(optuna.logging.WARNING)  # else a line for each trial
    try:
        sampler = optuna.samplers.TPESampler(seed=seed)
        study = optuna.create_study(direction="maximize", sampler=sampler)
        study.enqueue_trial({f"member_{i}": 0.0 for i in range(num_members)})
        study.optimize(trial_score, n_trials=num_trials)
    finally:
        optuna.logging.set_verbosity(verbosity)
    return softmax(study.best_params)


class _Search:
    """The official score of weights on some machines; each machine's metrics are computed once."""

    def __init__(self, machines: Mapping[str, MemberScores], year: int) -> None:
        self.machines = machines
        self.year = year
        self.metrics: dict[tuple[str, Weights], Any] = {}

    def score(self, weights: Weights, names: Sequence[str]) -> float:
        sections = [self._section(name, weights) for name in names]
        return official_score(sections, year=self.year)

    def _section(self, name: str, weights: Weights) -> Any:  # noqa: ANN401 - of the year
        if (name, weights) not in self.metrics:
            m = self.machines[name]
            fused = weighted_sum(weights, m.normalized)
            try:
                self.metrics[name, weights] = year_metrics(self.year, m.anomalous, fused, m.domains)
            except ValueError as error:
                raise ValueError(f"{name}: {error}") from error
        return self.metrics[name, weights]

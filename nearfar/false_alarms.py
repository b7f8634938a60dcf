"""How often untouched normal clips raise an alarm, beside how often they should.

For reports only: nothing is fitted to these clips.
"""

from collections.abc import Iterable, Mapping, Sequence
from typing import Any, NamedTuple

import numpy as np
from numpy.typing import NDArray
from scipy.stats import binomtest

from nearfar.fused_scores import Calibrated
from nearfar.schema import DOMAINS
from nearfar.score_table import ScoreTable

NOMINAL_RATES = (0.01, 0.05, 0.1)
ALL = "all"


class FalseAlarmRate(NamedTuple):
    """The share of normal test clips whose p-value is at most a nominal rate.

    Attributes:
        machine: Full name, or "all" for the clips of all machines together.
        domain: "source", "target", "unknown", or "all".
        nominal: The rate that was asked for.
        expected: What as many calibration clips can give: the largest multiple of 1 / (N + 1) up
            to the nominal rate, so 0 where N is too small; None where it is not known.
        num_normal: Normal clips that were judged.
        measured: Their share with a p-value up to the nominal rate.
        low: Lower end of the exact 95 % interval of a binomial share (Clopper and Pearson, 1934);
            it leaves out that the calibration clips are a sample too.
        high: Its upper end.
    """

    machine: str
    domain: str
    nominal: float
    expected: float | None
    num_normal: int
    measured: float
    low: float
    high: float


def untouched_false_alarms(calibrations: Mapping[str, Calibrated]) -> list[FalseAlarmRate]:
    """Return the false alarms among calibration clips, none of which judged itself.

    For a report without test clips: the clips are dealt to five parts, and those of each are judged
    by the others. As they are all alike before they are heard, the rates over both domains must lie
    near the nominal ones; what the rows tell is how unevenly the domains share the alarms, which
    one threshold serves.

    Args:
        calibrations: Machine -> its calibration.
    """
    parts, counts = [], []
    for machine, clips in calibrations.items():
        told = clips.untouched_p_values()
        count = len(clips.domains)
        counts.append(np.asarray(told.num_others, dtype=np.int64))
        parts.append(
            {
                "machines": np.full(count, machine, dtype=object),
                "file_names": np.array(clips.file_names, dtype=object),
                "domains": np.array(clips.domains, dtype=object),
                "conditions": np.full(count, "normal", dtype=object),
                "anomaly_scores": np.asarray(clips.anomaly_scores, dtype=np.float64),
                "p_values": np.asarray(told.p_values, dtype=np.float64),
                "decisions": np.full(count, None, dtype=object),
            }
        )
    if not parts:
        return []
    columns = {name: np.concatenate([part[name] for part in parts]) for name in parts[0]}
    return false_alarm_rates(ScoreTable(**columns), num_calibration=np.concatenate(counts))


def false_alarm_rates(
    table: ScoreTable,
    *,
    num_calibration: Mapping[str, int] | NDArray[np.int64] | None = None,
    nominal_rates: Sequence[float] = NOMINAL_RATES,
) -> list[FalseAlarmRate]:
    """Return a row for each machine, domain and nominal rate, then for all machines together.

    Clips of unknown condition and clips without a p-value do not count; where no clip counts there
    is no row.

    Args:
        table: Scores of clips.
        num_calibration: How many calibration clips each machine has, or (N,) by how many each clip
            was judged; without it `expected` is None, as it is for several machines at once.
        nominal_rates: In (0, 1).
    """
    counted = (table.conditions == "normal") & ~np.isnan(table.p_values)
    domains = np.array([domain or "unknown" for domain in table.domains], dtype=object)
    machines = sorted(set(table.machines[counted].tolist()))
    rows = []
    for machine in [*machines, ALL] if len(machines) > 1 else machines:
        of_machine = counted & ((machine == ALL) | (table.machines == machine))
        for domain in [*_sorted_domains(domains[of_machine]), ALL]:
            kept = of_machine & ((domain == ALL) | (domains == domain))
            if domain == ALL and len(set(domains[of_machine].tolist())) == 1:
                continue  # it would repeat the row of the only domain
            for nominal in nominal_rates:
                share = _share(table.p_values[kept] <= nominal)
                expected = None
                if num_calibration is not None and machine != ALL:
                    counts = (
                        np.array([num_calibration[machine]])
                        if isinstance(num_calibration, Mapping)
                        else num_calibration[kept]
                    )
                    expected = _expected(nominal, counts)
                row = FalseAlarmRate(machine, domain, nominal, expected, int(kept.sum()), *share)
                rows.append(row)
    return rows


def format_false_alarms(rows: Iterable[Mapping[str, Any]]) -> str:
    """Return a readable table in percent, a line for each machine and domain.

    Args:
        rows: `FalseAlarmRate._asdict()` of each row.
    """
    lines: dict[tuple[str, str], list[Mapping[str, Any]]] = {}
    for row in rows:
        lines.setdefault((row["machine"], row["domain"]), []).append(row)
    if not lines:
        return "No false-alarm rates: they need normal test clips with a p-value."
    rates = sorted({row["nominal"] for group in lines.values() for row in group})
    head = f"{'false alarms':<28}{'domain':<9}{'normals':>8}"
    text = [head + "".join(f"{f'at {100 * rate:g} %':>24}" for rate in rates)]
    for (machine, domain), group in lines.items():
        cells = []
        for row in sorted(group, key=lambda row: row["nominal"]):
            cell = f"{100 * row['measured']:.1f} ({100 * row['low']:.1f}-{100 * row['high']:.1f})"
            if row["expected"] is not None:
                cell += f" [{100 * row['expected']:.1f}]"
            cells.append(f"{cell:>24}")
        text.append(f"{machine:<28}{domain:<9}{group[0]['num_normal']:>8}{''.join(cells)}")
    text.append("measured % (95 % interval) [what so many calibration clips can give]")
    return "\n".join(text)


def _expected(nominal: float, counts: NDArray[np.int64]) -> float:
    """Return what so many calibration clips can give, on average over `counts`."""
    steps = counts + 1
    return float(np.mean(np.floor(nominal * steps + 1e-9) / steps))


def _share(alarms: NDArray[np.bool_]) -> tuple[float, float, float]:
    """Return the share of True with the ends of its exact interval."""
    test = binomtest(int(alarms.sum()), len(alarms))
    ends = test.proportion_ci(confidence_level=0.95, method="exact")
    return float(alarms.mean()), float(ends.low), float(ends.high)


def _sorted_domains(domains: NDArray[np.object_]) -> list[str]:
    there = set(domains.tolist())
    return [domain for domain in (*DOMAINS, "unknown") if domain in there]

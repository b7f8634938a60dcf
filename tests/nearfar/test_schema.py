"""How a machine is named, and what a shorter name means."""

import importlib.util
import subprocess
import sys

import pytest

from nearfar.schema import (
    CONDITIONS,
    DOMAINS,
    FAR,
    NEAR,
    domain_label,
    machine_name,
    resolve_machine,
)

MACHINES = ["2026/fan/00", "2026/gearbox/00", "2026/valve/00", "2026/valve/01"]


def test_a_machine_is_named_by_year_type_and_section() -> None:
    assert machine_name(2026, "ToyDrone", 3) == "2026/ToyDrone/03"
    assert machine_name(2020, "fan", 12) == "2020/fan/12"


@pytest.mark.parametrize("name", MACHINES)
def test_a_full_name_means_itself(name: str) -> None:
    assert resolve_machine(name, MACHINES) == name


def test_a_bare_type_means_its_only_machine_however_often_that_is_listed() -> None:
    assert resolve_machine("fan", MACHINES) == "2026/fan/00"
    assert resolve_machine("fan", ["2026/fan/00"] * 3) == "2026/fan/00"


def test_an_ambiguous_type_is_refused_with_the_machines_it_could_mean() -> None:
    with pytest.raises(KeyError, match="'valve' means more than one machine") as caught:
        resolve_machine("valve", MACHINES)
    assert "'2026/valve/00', '2026/valve/01'." in str(caught.value)
    assert "fan" not in str(caught.value)


@pytest.mark.parametrize("name", ["pump", "fa", "2026/fan", "FAN", ""])
def test_an_unknown_name_is_refused_with_all_machines(name: str) -> None:
    with pytest.raises(KeyError, match="is not a machine here") as caught:
        resolve_machine(name, MACHINES)
    assert all(machine in str(caught.value) for machine in MACHINES)


def test_no_machines_at_all_are_said_to_be_none() -> None:
    with pytest.raises(KeyError, match=r"Choose from: none\."):
        resolve_machine("fan", [])


def test_channels_and_classes_stand_in_the_order_that_files_hold_them() -> None:
    assert (NEAR, FAR) == (0, 1)
    assert DOMAINS == ("source", "target")
    assert CONDITIONS == ("normal", "anomaly")


def test_the_schema_runs_where_nothing_is_installed() -> None:
    spec = importlib.util.find_spec("nearfar.schema")
    assert spec is not None
    assert spec.origin is not None
    # -I -S: neither the repository nor any site-packages on the path
    subprocess.run([sys.executable, "-I", "-S", spec.origin], check=True)


def test_a_domain_is_numbered_as_models_take_it() -> None:
    assert [domain_label(domain) for domain in (*DOMAINS, None)] == [0, 1, -1]

"""Refusals: each rule alone, all rules at once, and nothing to say when all is well."""

from __future__ import annotations

import dataclasses
from typing import Any

import pytest

from haulier.definition import Role
from haulier.errors import Problem
from haulier.planner.methods import VolumeFacts, choose_method
from haulier.planner.refusals import (
    FilingFacts,
    MissingStorage,
    SourceFacts,
    TargetFacts,
    as_problems,
    refuse_filing,
    refuse_source,
    refuse_target,
    silent_node,
    still_there,
)

MIB = 1 << 20
NODE = {
    "qemu_version": "7.2.22",
    "machines": {"pc-q35-7.2": "pc-q35-7.2", "q35": "pc-q35-7.2"},
    "accel": "tcg",
    "swtpm_version": "0.7.1",
    "swtpm_too_old": False,
    "libtpms_version": "0.9.2",
}
FILING = FilingFacts(
    vm="web", vm_state="running", vm_node="alpha", target="beta", offline=False, open_migration=None,
    source_silent_s=None, target_silent_s=None, target_state="online",
    choices=(choose_method(VolumeFacts("scsi0", Role.DISK)),),
)  # fmt: skip
SOURCE = SourceFacts(vm="web", status="running", accel="tcg", qemu_version="7.2.22", ram_kib=256 * 1024 + 8)
TARGET = TargetFacts(
    node="beta", facts=NODE, machine="pc-q35-7.2", accel="tcg", ram_kib=256 * 1024, ram_free_bytes=(256 + 64) * MIB,
    needed_by_storage={"local": 100 * MIB}, free_by_storage={"local": (100 + 16) * MIB}, has_tpm=True,
    source_libtpms="0.9.6",
)  # fmt: skip
OLD_DISK, ISO = (
    choose_method(facts)
    for facts in (VolumeFacts("before.scsi1", Role.DISK, snapshot_only=True), VolumeFacts("ide2", Role.CDROM))
)


def codes(problems: tuple[Problem, ...]) -> list[str]:
    for problem in problems:
        assert problem.message, problem
        assert problem.hint, problem
    return [problem.code for problem in problems]


def node_with(**changes: Any) -> dict[str, Any]:
    return {key: value for key, value in (NODE | changes).items() if value is not None}


def test_nothing_against_it() -> None:
    assert refuse_filing(FILING) == refuse_source(SOURCE) == refuse_target(TARGET) == ()


FILING_RULES: list[tuple[dict[str, Any], str]] = [
    ({"open_migration": 7}, "migration_open"),
    ({"target": "alpha"}, "already_there"),
    ({"offline": True}, "vm_running"),
    ({"offline": True, "vm_state": "paused"}, "vm_running"),
    ({"vm_state": "stopped"}, "vm_not_running"),
    ({"vm_state": "lost"}, "vm_not_running"),
    ({"target_state": "maintenance"}, "node_in_maintenance"),
    ({"source_silent_s": 9.0}, "node_silent"),
    ({"target_silent_s": float("inf")}, "node_silent"),
    ({"missing_storages": (MissingStorage("fast"),)}, "storage_missing"),
    ({"missing_storages": (MissingStorage("fast", "local"),)}, "storage_missing"),
    ({"unused_maps": ("fast",)}, "storage_map_unused"),
    ({"names_taken": ("local:9/ci.raw",)}, "name_taken"),
    ({"choices": (OLD_DISK,)}, "snapshot_only"),
    ({"choices": (*FILING.choices, ISO)}, "cdrom_local"),
]


@pytest.mark.parametrize(("changes", "code"), FILING_RULES)
def test_filing_rule_alone(changes: dict[str, Any], code: str) -> None:
    assert codes(refuse_filing(dataclasses.replace(FILING, **changes))) == [code]


def test_all_filing_rules_at_once() -> None:
    changes = {key: value for each, _ in FILING_RULES for key, value in each.items()} | {"offline": False}
    facts = dataclasses.replace(FILING, **(changes | {"choices": (OLD_DISK, ISO)}))
    assert codes(refuse_filing(facts)) == [
        "migration_open", "already_there", "vm_not_running", "node_in_maintenance", "node_silent", "node_silent",
        "storage_missing", "storage_map_unused", "name_taken", "snapshot_only", "cdrom_local",
    ]  # fmt: skip


def test_paused_vm_may_migrate() -> None:
    assert refuse_filing(dataclasses.replace(FILING, vm_state="paused")) == ()


@pytest.mark.parametrize("state", ["stopped", "lost"])
def test_vm_that_does_not_run_may_be_moved_offline(state: str) -> None:
    assert refuse_filing(dataclasses.replace(FILING, vm_state=state, offline=True)) == ()


def test_program_that_runs_all_the_same_is_named() -> None:
    problem = still_there("web", program="swtpm", pid=7)
    assert (problem.code, problem.message) == ("vm_running", "swtpm (pid 7) of VM web runs")


def test_vm_that_does_not_run_needs_no_ram_and_no_accelerator() -> None:
    facts = dataclasses.replace(TARGET, machine=None, accel=None, ram_kib=0, ram_free_bytes=0)
    assert refuse_target(facts) == ()


def test_open_migration_is_named_in_the_hint() -> None:
    (problem,) = refuse_filing(dataclasses.replace(FILING, open_migration=7))
    assert problem.hint == "haulier migration show 7"


@pytest.mark.parametrize(("silent_s", "words"), [(9.4, "was last heard of 9 s ago"), (float("inf"), "does not run")])
def test_silent_node(silent_s: float, words: str) -> None:
    assert silent_node("beta", silent_s).message == f"the worker of node beta {words}"


SOURCE_RULES: list[tuple[dict[str, Any], str]] = [
    ({"status": "postmigrate"}, "guest_state"),
    ({"ram_kib": 256 * 1024}, "ram_multiple_of_256k"),
    ({"foreign_jobs": ("backup0",)}, "block_job_running"),
    ({"blocked_reasons": ("virtfs is mounted",)}, "qemu_blocks_migration"),
]


@pytest.mark.parametrize(("changes", "code"), SOURCE_RULES)
def test_source_rule_alone(changes: dict[str, Any], code: str) -> None:
    assert codes(refuse_source(dataclasses.replace(SOURCE, **changes))) == [code]


def test_all_source_rules_at_once() -> None:
    everything = {key: value for each, _ in SOURCE_RULES for key, value in each.items()}
    assert codes(refuse_source(dataclasses.replace(SOURCE, **everything))) == [code for _, code in SOURCE_RULES]


def test_paused_guest_may_migrate() -> None:
    assert refuse_source(dataclasses.replace(SOURCE, status="paused")) == ()


@pytest.mark.parametrize("changes", [{"accel": "kvm"}, {"qemu_version": "9.0.0"}, {"ram_kib": 256 * 1024 + 8}])
def test_ram_that_loses_nothing_may_migrate(changes: dict[str, Any]) -> None:
    assert refuse_source(dataclasses.replace(SOURCE, **{"ram_kib": 256 * 1024, **changes})) == ()


def test_every_job_and_every_reason_is_named() -> None:
    facts = dataclasses.replace(SOURCE, foreign_jobs=("one", "two"), blocked_reasons=("three", "four"))
    said = " ".join(problem.message for problem in refuse_source(facts))
    assert all(word in said for word in ("one", "two", "three", "four"))


GONE = Problem("qemu_missing", "no QEMU", "Install it.").as_dict()
TARGET_RULES: list[tuple[dict[str, Any], str]] = [
    ({"machine": "pc-q35-9.2"}, "machine_unknown"),
    ({"accel": "kvm"}, "accel_differs"),
    ({"bridges_missing": ("vmbr1",)}, "bridge_missing"),
    ({"facts": node_with(swtpm_too_old=True, swtpm_version="0.6.3")}, "swtpm_too_old"),
    ({"source_libtpms": "0.10.0"}, "libtpms_older"),
    ({"ram_free_bytes": (256 + 64) * MIB - 1}, "no_ram"),
    ({"needed_by_storage": {"local": 1, "fast": 1}}, "storage_missing"),
    ({"free_by_storage": {"local": (100 + 16) * MIB - 1}}, "no_space"),
    ({"leftovers": ("qemu (pid 7)",)}, "process_there"),
]


@pytest.mark.parametrize(("changes", "code"), TARGET_RULES)
def test_target_rule_alone(changes: dict[str, Any], code: str) -> None:
    assert codes(refuse_target(dataclasses.replace(TARGET, **changes))) == [code]


def test_all_target_rules_at_once() -> None:
    everything = {key: value for each, _ in TARGET_RULES for key, value in each.items()}
    everything["needed_by_storage"] = {"fast": 1, "local": 100 * MIB}
    assert codes(refuse_target(dataclasses.replace(TARGET, **everything))) == [code for _, code in TARGET_RULES]


@pytest.mark.parametrize(
    ("facts", "found"),
    [
        (node_with(qemu_problem=GONE, machines=None, accel=None, qemu_version=None), ["qemu_missing"]),
        (node_with(swtpm_problem=GONE | {"code": "swtpm_missing"}, swtpm_version=None, swtpm_too_old=None,
                   libtpms_version=None), ["swtpm_missing"]),
    ],
)  # fmt: skip
def test_missing_program_is_the_only_thing_said_of_it(facts: dict[str, Any], found: list[str]) -> None:
    assert codes(refuse_target(dataclasses.replace(TARGET, facts=facts))) == found


def test_vm_without_tpm_does_not_care_about_swtpm() -> None:
    facts = node_with(swtpm_too_old=True, libtpms_version="0.1.0")
    assert refuse_target(dataclasses.replace(TARGET, facts=facts, has_tpm=False)) == ()


@pytest.mark.parametrize(
    ("here", "there", "refused"),
    [
        ("0.9.2", "0.9.6", False),
        ("0.9.6", "0.9.2", False),
        ("0.9.6", "0.10.0", True),
        ("0.10.0", "0.9.6", False),
        ("0.10.0", "1.0.0", True),
        ("1.0.0", "0.10.0", False),
        (None, "0.9.6", False),
        ("0.9.6", None, False),
    ],
)
def test_libtpms_is_compared_by_minor(here: str | None, there: str | None, *, refused: bool) -> None:
    facts = dataclasses.replace(TARGET, facts=node_with(libtpms_version=here), source_libtpms=there)
    assert codes(refuse_target(facts)) == ["libtpms_older"] * refused


def test_problems_come_back_from_rows() -> None:
    problems = (Problem("one", "m", "h"), Problem("two", "n", ""))
    assert as_problems(problem.as_dict() for problem in problems) == problems

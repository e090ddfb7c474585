"""What a failure says about trying again: the classes of failures, by their codes. Pure.

A code that stands in no class ends its migration: the guest, its TPM or a person must change something first.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from enum import StrEnum

from haulier.errors import Problem

_FIRST_S = 10.0
# Many that failed for one reason must not all come back at one moment.
_JITTER = 0.2


class FailureClass(StrEnum):
    """What is at fault, and so what helps."""

    PASSING = "passing"
    TARGET = "target"
    LASTING = "lasting"


@dataclass(frozen=True, slots=True)
class ClassRule:
    """One class: what follows on it, in words for people, and its codes."""

    then: str
    codes: frozenset[str]


_PASSING = """
    block_job_running copy_failed database_failed given_up merge_failed mirror_failed node_draining node_in_maintenance
    node_silent operation_open partner_leaving qemu_img_failed qemu_img_silent qmp_silent stalled stream_failed
    timed_out tool_silent tpm_state_unstable vm_moved worker_lost
"""
_TARGET = """
    bridge_missing carrier_gone carrier_not_started device_in_use device_missing device_not_empty device_too_small
    firmware_missing no_port no_ram no_space node_lost pool_not_zeroed qemu_missing qemu_not_started storage_missing
    storage_not_mounted swtpm_missing swtpm_not_started swtpm_too_old target_failed target_unreachable volume_exists
"""
CLASSES: Mapping[FailureClass, ClassRule] = {
    FailureClass.PASSING: ClassRule("tried again, on the same target", frozenset(_PASSING.split())),
    FailureClass.TARGET: ClassRule(
        "tried again: on another target if `auto` had chosen the first, else on the same", frozenset(_TARGET.split())
    ),
}


def class_of(code: str) -> FailureClass:
    """The class of a failure's first reason, which is the most telling one."""
    return next((name for name, rule in CLASSES.items() if code in rule.codes), FailureClass.LASTING)


def lasting(problems: Iterable[Problem]) -> tuple[Problem, ...]:
    """Those of them that do not pass by themselves; for the others a migration that waits goes on waiting."""
    return tuple(problem for problem in problems if class_of(problem.code) is not FailureClass.PASSING)


def longest_delay_s(at_most_s: float) -> float:
    """What `delay_s` cannot exceed: who is put off for longer was put off by another clock."""
    return at_most_s * (1 + _JITTER)


def delay_s(failures: int, *, at_most_s: float, chance: float) -> float:
    """The delay in seconds after so many failures in a row (1 or more): it doubles each time, up to `at_most_s`.

    `chance` (0 to 1) moves it by up to a fifth in either direction.
    """
    # 2 ** 40 is beyond any limit, and far below what a float can hold.
    grown = min(_FIRST_S * 2.0 ** min(failures - 1, 40), at_most_s)
    return grown * (1 - _JITTER + 2 * _JITTER * chance)

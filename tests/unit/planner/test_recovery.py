"""The tables of docs/recovery.md: whatever is found, a row fits, and every row can be the one."""

from __future__ import annotations

import dataclasses
import itertools
from collections.abc import Iterator
from typing import Any

import pytest

from haulier.planner.recovery import (
    PROGRAM_RULES,
    STEP_RULES,
    ProgramAct,
    ProgramFinding,
    Rule,
    StepAct,
    StepFinding,
    decide_program,
    decide_step,
)

TABLES = [(STEP_RULES, StepFinding, decide_step), (PROGRAM_RULES, ProgramFinding, decide_program)]


def findings(kind: type[Any]) -> Iterator[Any]:
    """All that can be found."""
    names = [field.name for field in dataclasses.fields(kind)]
    for values in itertools.product((False, True), repeat=len(names)):
        yield kind(**dict(zip(names, values, strict=True)))


@pytest.mark.parametrize(("rules", "kind", "decide"), TABLES)
def test_every_finding_is_decided_by_the_first_row_that_fits(rules: Any, kind: Any, decide: Any) -> None:
    first: set[int] = set()
    for finding in findings(kind):
        fits = [n for n, rule in enumerate(rules) if all(getattr(finding, k) is v for k, v in rule.when.items())]
        assert decide(finding) is rules[fits[0]].act
        first.add(fits[0])
    assert first == set(range(len(rules))), "a row that can never be the one"


@pytest.mark.parametrize("rule", [*STEP_RULES, *PROGRAM_RULES])
def test_row_says_which_fact_decides(rule: Rule[Any]) -> None:
    assert rule.fact
    assert rule.because


def may_be_let_go(finding: StepFinding) -> bool:
    """Of a sync's target whose node is silent nothing is in hand but files: no guest, and nothing that could commit."""
    return finding.sync_target and finding.node_silent and not finding.lease_over


def test_side_is_let_go_of_a_syncs_target_that_is_silent_and_of_no_other() -> None:
    for finding in findings(StepFinding):
        wanted = may_be_let_go(finding) and (finding.undo or finding.handed_over)
        assert (decide_step(finding) is StepAct.LET_GO) == wanted, finding


def test_nothing_that_was_handed_over_goes_back() -> None:
    for finding in findings(StepFinding):
        if finding.handed_over and not finding.undo and not may_be_let_go(finding):
            assert decide_step(finding) in (StepAct.RUN_AGAIN, StepAct.SEND_AGAIN), finding


def test_no_undo_is_left_alone() -> None:
    for finding in findings(StepFinding):
        if finding.undo and not may_be_let_go(finding):
            assert decide_step(finding) in (StepAct.UNDO_AGAIN, StepAct.GO_PAST, StepAct.SEND_AGAIN), finding


def test_guest_is_stopped_only_where_a_newer_one_is() -> None:
    for finding in findings(ProgramFinding):
        if decide_program(finding) is ProgramAct.STOP and finding.has_guest:
            assert finding.known, finding
            assert not finding.attended, finding
            assert finding.outdated, finding
            assert not finding.lives_here, finding

"""The table of what is done about a VM that may be stopped for its move, or was."""

from __future__ import annotations

import dataclasses
import itertools
from collections.abc import Iterator

import pytest

from haulier.planner.consents import CONSENT_RULES, ConsentAct, ConsentFinding, decide_consent

_NAMES = [field.name for field in dataclasses.fields(ConsentFinding)]
A = ConsentAct


def findings() -> Iterator[ConsentFinding]:
    """All that can be found."""
    for values in itertools.product((False, True), repeat=len(_NAMES)):
        yield ConsentFinding(**dict(zip(_NAMES, values, strict=True)))


def test_the_law_holds_whatever_is_found_and_each_row_can_be_the_one() -> None:
    first = set[int]()
    for found in findings():
        fits = [n for n, rule in enumerate(CONSENT_RULES) if all(getattr(found, k) is v for k, v in rule.when.items())]
        first.add(fits[0])
        act = decide_consent(found)
        assert act is CONSENT_RULES[fits[0]].act
        is_free = not (found.at_work or found.sync_at_work)
        if act is A.STOP:
            assert not found.stopping
            assert found.holds
            assert found.goes_on
            assert found.has_room
            assert is_free
        if act is A.START:
            assert found.stopping
            assert found.is_off
            assert is_free
            assert not (found.runs or found.node_lost or found.may_move)
        if act in (A.OVER, A.NOT_STOPPED):
            assert found.runs, "nobody forgets one that is off"
    assert first == set(range(len(CONSENT_RULES))), "a row that can never be the one"


def _consented(**facts: bool) -> ConsentFinding:
    return ConsentFinding(**({"stopping": False, "holds": True, "goes_on": True, "has_room": True} | facts))


def _stopped(**facts: bool) -> ConsentFinding:
    return ConsentFinding(**({"stopping": True, "is_off": True} | facts))


@pytest.mark.parametrize(
    ("found", "act"),
    [
        (_consented(), A.STOP),
        (_consented(holds=False), A.FORGET),
        (_consented(goes_on=False), A.WAIT),
        (_consented(at_work=True), A.WAIT),
        (_consented(has_room=False), A.WAIT),
        (_consented(has_room=False, sync_at_work=True), A.WAIT),
        (_consented(sync_at_work=True), A.MAKE_WAY),
        (_stopped(is_off=False, stop_unwanted=True, at_work=True, runs=True), A.TAKE_BACK),
        (_stopped(is_off=False, at_work=True, runs=True), A.WAIT),
        (_stopped(is_off=False, stop_failed=True, runs=True), A.NOT_STOPPED),
        (_stopped(is_off=False, stop_failed=True, runs=True, unseen=True), A.WAIT),
        (_stopped(is_off=False, runs=True), A.OVER),
        (_stopped(may_move=True), A.WAIT),
        (_stopped(), A.START),
        (_stopped(node_lost=True), A.TELL),
        (_stopped(is_off=False), A.TELL),
        (_stopped(sync_at_work=True), A.MAKE_WAY),
        (_stopped(start_failed=True), A.TELL),
        (_stopped(start_waits=True, at_work=True), A.TELL),
        (_stopped(start_failed=True, slow_beat=True), A.START),
    ],
)
def test_what_is_done(found: ConsentFinding, act: ConsentAct) -> None:
    assert decide_consent(found) is act


def test_each_row_says_why() -> None:
    assert all(rule.fact and rule.because for rule in CONSENT_RULES)

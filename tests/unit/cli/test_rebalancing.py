"""What `haulier rebalance` says of a plan, of what was filed, and of what came of it."""

from __future__ import annotations

import json
from typing import Any

import pytest

from haulier.cli import main as cli
from haulier.cli import rebalancing
from haulier.cli.output import Mode
from haulier.cli.rebalancing import _goes_on, _show, _status
from haulier.services import rebalancing as services

MOVE = {
    "vm": "web", "source": "alpha", "target": "beta", "reason": "RAM of alpha 81% → 70%, of beta 20% → 31%",
    "gain": 0.4231, "mends": [], "bytes": 5 << 30,
}  # fmt: skip
LOAD = {
    "host": "alpha", "ram_bytes": 16 << 30, "ram_before_bytes": 13 << 30, "ram_after_bytes": 11 << 30,
    "cpus": 32.0, "cpus_before": 12.0, "cpus_after": 10.0,
}  # fmt: skip
PLAN: dict[str, Any] = {
    "batch": None, "state": "planned", "plan": [MOVE], "loads": [LOAD], "left": 0.1, "broken_rules": [], "closed": [],
    "refused": [], "counts": {"to_move": 1}, "eta_s": 12.0, "migrations": [],
}  # fmt: skip
FILED = {
    **PLAN, "batch": 7, "state": "open", "counts": {"queued": 1}, "eta_s": 20.0,
    "migrations": [{"id": 9, "vm": "web", "source": "alpha", "target": "beta", "label": None, "priority": 20,
                    "deadline": None, "state": "queued", "error": None, "waiting_for": {"text": "room out of alpha"}}],
}  # fmt: skip


def said(capsys: pytest.CaptureFixture[str], document: dict[str, Any]) -> list[str]:
    assert _show(document) == 0
    return [" ".join(line.split()) for line in capsys.readouterr().out.splitlines()]


def test_plan_has_each_move_with_its_gain_and_the_loads(capsys: pytest.CaptureFixture[str]) -> None:
    assert said(capsys, PLAN) == [
        "1 VM would move, in about 12s",
        "vm source target bytes gain why",
        "web alpha beta 5.0 GiB 42.3% RAM of alpha 81% → 70%, of beta 20% → 31%",
        "node RAM before after of full before full after",
        "alpha 13.0 GiB 11.0 GiB 16.0 GiB 81.2% 68.8%",
        "gain is of the imbalance that can be removed; 10.0% of it is left then",
    ]


def test_what_was_filed_is_shown_as_the_batch(capsys: pytest.CaptureFixture[str]) -> None:
    lines = said(capsys, FILED)
    assert lines[0] == "batch 7 (rebalance): open; 1 queued; about 20s left"
    assert lines[2] == "9 web alpha beta 20 queued room out of alpha"
    assert "web alpha beta 5.0 GiB 42.3% RAM of alpha 81% → 70%, of beta 20% → 31%" in lines


def test_nothing_to_gain_is_said(capsys: pytest.CaptureFixture[str]) -> None:
    closed = [{"node": "gamma", "code": "node_lost", "message": "gamma is lost", "hint": ""}]
    even = {**PLAN, "state": "even", "plan": [], "loads": [], "broken_rules": ["pair"], "closed": closed}
    assert said(capsys, even) == [
        "nothing is to be gained: no move pays",
        "note: rule pair stays broken (haulier rule show pair)",
        "note: gamma takes nothing: gamma is lost",
    ]
    refused = [{"vm": "web", "code": "cdrom_local", "message": "a CD is in it", "hint": ""}]
    lines = said(capsys, {**even, "refused": refused})
    assert lines[0] == "nothing is to be gained: no other move pays"
    assert lines[-1] == "note: to move web would pay, and was refused: a CD is in it"


@pytest.mark.parametrize(
    ("counts", "state", "goes_on", "status"),
    [
        ({"done": 2}, "done", False, 0),
        ({"done": 1, "undone": 1}, "done", False, 1),
        ({"cancelled": 2}, "cancelled", False, 1),
        ({"done": 1, "needs_operator": 1}, "open", False, 3),
        ({"queued": 1}, "open", True, 1),
        ({"queued": 1}, "paused", False, 1),
        ({"queued": 1, "running": 1}, "paused", True, 1),
    ],
)
def test_who_waits_for_it_hears_when_it_is_over(
    counts: dict[str, int], state: str, *, goes_on: bool, status: int
) -> None:
    document = {**FILED, "state": state, "counts": counts}
    assert (_goes_on(document), _status(document)) == (goes_on, status)


@pytest.mark.parametrize(
    ("words", "asked"),
    [
        (("--plan",), [("plan_rebalance", 5)]),
        (("--plan", "--moves", "2"), [("plan_rebalance", 2)]),
        (("--moves", "3"), [("rebalance", 3)]),
        (("--wait",), [("rebalance", 5)]),
    ],
)
def test_command_asks_for_what_was_said(
    capsys: pytest.CaptureFixture[str],
    monkeypatch: pytest.MonkeyPatch,
    words: tuple[str, ...],
    asked: list[tuple[str, int]],
) -> None:
    calls = []

    def answer(name: str) -> Any:
        def act(_: object, *, moves: int) -> dict[str, Any]:
            calls.append((name, moves))
            return PLAN

        return act

    for name in ("plan_rebalance", "rebalance"):
        monkeypatch.setattr(services, name, answer(name))
    monkeypatch.setattr(rebalancing, "context", lambda: None)
    with pytest.raises(SystemExit) as left:
        cli.main(["rebalance", *words, "--json"])
    Mode.json = False
    assert (left.value.code, calls) == (0, asked)
    assert json.loads(capsys.readouterr().out) == PLAN

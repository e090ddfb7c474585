"""Twelve guests on four nodes are asked to move at once: every limit holds at every moment, whoever is killed.

What was at work is read from the event log, which is written in the transactions that begin and end a migration.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator
from datetime import datetime, timedelta
from pathlib import Path
from typing import Any

import pytest

from tests.acceptance.conftest import Stacks
from tests.acceptance.guest import DISK, TPM, Guest
from tests.acceptance.invariant import assert_all_is_well
from tests.acceptance.stack import Stack
from tests.acceptance.waiting import wait_until

NODES = ("alpha", "beta", "gamma", "delta")
ENDS = {f"migration.{state}" for state in ("done", "undone", "refused", "cancelled", "queued")}
# Twelve guests and the targets of those that move share two cores.
_PACE = "tick_us=20000 line_every=5 disk_every=2 tpm_every=5"
# Each goes to the next node, but for those of delta, which go to two.
_MOVES = [(source, NODES[(NODES.index(source) + step) % 4]) for source in NODES for step in (1, 1, 2)]
MAX_RUNNING, MAX_OUT, MAX_IN, MAX_MOVES = 4, 2, 1, 2
# Those of the first moment, and one more before there is room by that again.
BEGUN, BEGUN_IN_S = 5, 10


@pytest.fixture(scope="module")
def four_nodes(stacks: Stacks) -> Iterator[Stack]:
    with stacks.alone(NODES, {}) as stack:
        yield stack


@pytest.fixture
def guests(four_nodes: Stack, image: Path) -> list[tuple[Guest, str]]:
    """Each with the node that it is to go to."""
    boot = f'-kernel {image} -append "{_PACE}"'
    made = []
    for number, (source, target) in enumerate(_MOVES):
        guest = Guest(four_nodes, f"q{number}", boot, (DISK, TPM), 48)
        guest.define(source)
        guest.start()
        made.append((guest, target))
    return made


def at_every_event(stack: Stack) -> Iterator[list[tuple[str, str]]]:
    """Source and target of the migrations at work, after each event that begins or ends one."""
    at_work: dict[int, tuple[str, str]] = {}
    for event in stack.table("event"):
        if event["kind"] == "migration.running":
            at_work[event["migration"]] = (event["data"]["source"], event["data"]["target"])
        elif event["kind"] in ENDS:
            at_work.pop(event["migration"], None)
        yield list(at_work.values())


def most(stack: Stack) -> dict[str, int]:
    """The most that were at work at one moment: in all, out of a node, into one."""
    found: Counter[str] = Counter()
    for pairs in at_every_event(stack):
        found["all"] = max(found["all"], len(pairs))
        for name, place in (("out", 0), ("in", 1)):
            found[name] = max(found[name], *Counter(pair[place] for pair in pairs).values(), 0)
    return dict(found)


def ended(stack: Stack) -> int:
    return sum(row["finished_at"] is not None for row in stack.table("migration"))


def most_moves(stack: Stack) -> int:
    """The most guests whose RAM was moved at one moment."""
    spans = [(row["moving_at"], row["moved_at"] or row["finished_at"]) for row in stack.table("attempt")]
    return max(sum(1 for begin, end in spans if begin <= at < end) for at, _ in spans)


def most_begun(stack: Stack) -> int:
    """The most that were begun in the time of the rate."""
    begun: list[datetime] = [row["started_at"] for row in stack.table("attempt")]
    period = timedelta(seconds=BEGUN_IN_S)
    return max(sum(at <= other < at + period for other in begun) for at in begun)


@pytest.mark.timeout(900)
def test_limits_hold_at_every_moment(four_nodes: Stack, guests: list[tuple[Guest, str]]) -> None:
    stack = four_nodes
    limits = ("--max-running", str(MAX_RUNNING), "--max-moves", str(MAX_MOVES))
    stack.haulier("queue", "set", *limits, "--rate", f"rack7={BEGUN}/{BEGUN_IN_S}s").done()
    stack.haulier("queue", "pause", "rack7").done()
    for node in NODES:
        stack.haulier("node", "set", node, "--max-out", str(MAX_OUT), "--max-in", str(MAX_IN)).done()
    file = stack.state / "moves.csv"
    file.write_text("vm,target\n" + "".join(f"{guest.name},{target}\n" for guest, target in guests))
    # One try each: whatever fails is to be seen.
    submitted = stack.haulier("batch", "submit", str(file), "--label", "rack7", "--tries", "1").done()
    assert submitted["counts"] == {"queued": len(guests)}
    assert stack.haulier("batch", "submit", str(file), "--label", "rack7").done()["id"] == submitted["id"]
    held = {each["waiting_for"]["text"] for each in stack.haulier("queue").done()}
    assert held == {"label rack7 is paused"}
    stack.haulier("queue", "resume", "rack7").done()
    for done in (2, 6):
        wait_until(f"{done} have ended", lambda done=done: ended(stack) >= done, deadline_s=300)  # type: ignore[misc]
        assert_queue_says_why(stack)
        stack.kill("control")
    wait_until("all have ended", lambda: ended(stack) == len(guests), deadline_s=500)
    assert [(row["id"], row["problems"]) for row in stack.table("migration") if row["state"] != "done"] == []
    shown = stack.haulier("batch", "show", str(submitted["id"])).done()
    assert (shown["state"], shown["counts"], shown["eta_s"]) == ("done", {"done": len(guests)}, 0.0)
    assert most(stack) == {"all": MAX_RUNNING, "out": MAX_OUT, "in": MAX_IN}, "neither more nor less"
    assert most_moves(stack) <= MAX_MOVES
    assert most_begun(stack) <= BEGUN
    for guest, target in guests:
        assert guest.row()["node"] == target
        guest.wait_ticks(10)
    assert_all_is_well(stack, *(guest for guest, _ in guests))


def assert_queue_says_why(stack: Stack) -> None:
    """Each that waits names a limit that is full, or that it is about to begin."""
    waiting: list[dict[str, Any]] = stack.haulier("queue").done()
    for gate in ("move", "prepare"):
        positions = [each["position"] for each in waiting if each["gate"] == gate]
        assert positions == list(range(1, len(positions) + 1))
    for each in waiting:
        hold = each["waiting_for"]
        assert hold["limit"] == "turn" or hold["in_use"] >= hold["allowed"], each

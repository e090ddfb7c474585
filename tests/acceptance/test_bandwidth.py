"""The bandwidth of a link is shared by those that cross it, and divided anew while they do."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from tests.acceptance.guest import Guest, make_full
from tests.acceptance.invariant import assert_all_is_well
from tests.acceptance.stack import Stack
from tests.acceptance.waiting import wait_until

MIB = 1 << 20
# Two guests with a full disk, at the first budget, take half a minute.
_BUDGET, _MORE = 2 * MIB, 8 * MIB


def speed(guest: Guest) -> int:
    """What the jobs that still carry have been told, in all; 0 if there is none."""
    jobs = guest.ask("query-block-jobs")
    assert all(job["speed"] > 0 for job in jobs if not job["ready"]), "no limit"
    return sum(job["speed"] for job in jobs if not job["ready"])


def allow(stack: Stack, budget: int | str) -> Any:
    return stack.haulier("queue", "set", "--link", f"alpha:beta={budget}").done()


def test_link_is_shared_while_mirrors_run(stack: Stack, make_guest: Callable[..., Guest]) -> None:
    allow(stack, _BUDGET)
    first, second = make_full(make_guest), make_full(make_guest)
    commands = [first.begin_migrate("beta")]
    wait_until("the first has all", lambda: speed(first) == _BUDGET)
    commands.append(second.begin_migrate("beta"))

    def shared() -> bool:
        # The newcomer first: it has something only when the other has been told of less.
        his, mine = speed(second), speed(first)
        assert his + mine <= _BUDGET, "more than there is"
        return his == mine == _BUDGET // 2

    wait_until("both have half", shared, every_s=0.01)
    allow(stack, _MORE)
    wait_until("both have more", lambda: speed(first) == speed(second) == _MORE // 2)
    wait_until("RAM crosses", lambda: first.ask("query-migrate").get("status") == "active", every_s=0.01)
    told = first.ask("query-migrate-parameters")["max-bandwidth"]
    assert 0 < told <= _MORE, "the stream has its share like a mirror"
    allow(stack, "usual")
    assert [command.finish().done()["state"] for command in commands] == ["done"] * 2
    wait_until("nobody shares any more", lambda: not stack.table("bandwidth_share"))
    for guest in (first, second):
        guest.wait_ticks()
    assert_all_is_well(stack, first, second)

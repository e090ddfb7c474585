"""Evacuations are shown by what the rows say, in as many statements for many VMs as for few."""

from __future__ import annotations

import pytest

from haulier.clock import now
from haulier.services import evacuations
from haulier.services.evacuation_view import list_evacuations
from haulier.services.limits import LimitChange, set_limits
from models import LimitScope, Migration, MigrationState
from tests.unit.services.hall import beat, hold, play, show, where
from tests.unit.services.world import World, statements


def test_list_counts_the_newest_migrations_of_each_on_its_way(hall: World) -> None:
    """Out, and back; one that was tried at another target too counts once."""
    evacuations.evacuate(hall.context, "alpha")
    assert [each["counts"] for each in list_evacuations(hall.context)] == [show(hall)["counts"]]
    play(hall)
    evacuations.evacuate(hall.context, "beta")
    play(hall)
    hold(hall)
    evacuations.restore(hall.context, "alpha")
    newest, oldest = list_evacuations(hall.context)
    assert (newest["id"], newest["node"], newest["state"], newest["counts"]) == (2, "beta", "drained", {"done": 1})
    assert (oldest["id"], oldest["node"], oldest["state"]) == (1, "alpha", "restoring")
    assert oldest["counts"] == show(hall)["counts"] == {"queued": 3}
    assert [each["id"] for each in list_evacuations(hall.context, limit=1)] == [2]


def test_what_needs_an_operator_is_counted_as_such(hall: World) -> None:
    evacuations.evacuate(hall.context, "alpha")
    hall.change(Migration, Migration.id == 2, needs_operator=True)
    (document,) = list_evacuations(hall.context)
    assert document["counts"] == show(hall)["counts"] == {"running": 2, "needs_operator": 1}
    assert show(hall)["waiting_for"] == "an operator: haulier migration show 2"


def test_in_one_line_what_is_at_work_and_what_waits(hall: World) -> None:
    hold(hall)
    evacuations.evacuate(hall.context, "alpha")
    assert show(hall)["waiting_for"].startswith("3 wait; the first of these, db, for: none may be at work")
    hall.change(Migration, Migration.id < 3, state=MigrationState.RUNNING)
    assert show(hall)["waiting_for"].startswith("2 moves are at work, 1 waits, web, for: none may be at work")
    hall.change(Migration, Migration.id == 3, state=MigrationState.RUNNING)
    assert show(hall)["waiting_for"] == "3 moves are at work"


def test_when_each_and_all_will_be_done_is_told(hall: World) -> None:
    """One at a time, two seconds each."""
    set_limits(hall.context, [LimitChange(LimitScope.CLUSTER, (), 1)])
    planned = evacuations.plan_evacuation(hall.context, "alpha")
    ends = [each["eta_s"] for each in planned["plan"]]
    assert ends == sorted(ends)
    assert (ends[0] >= 2, ends[1] >= ends[0] + 2, ends[2] >= ends[1] + 2) == (True, True, True)
    assert planned["eta_s"] == ends[2]
    begun = evacuations.evacuate(hall.context, "alpha")
    left = sorted(each["eta_s"] for each in begun["plan"])
    assert (left[0] <= ends[0], left[2], begun["eta_s"]) == (True, pytest.approx(ends[2], abs=2), left[2])
    play(hall)
    assert ({each["eta_s"] for each in show(hall)["plan"]}, show(hall)["eta_s"]) == ({None}, 0.0)


def test_what_is_about_to_arrive_is_waited_for(hall: World) -> None:
    """It had begun to come before its target was to be emptied."""
    filed = evacuations.evacuate(hall.context, "alpha")["plan"]
    (to_beta,) = [each["vm"] for each in filed if each["target"] == "beta"]
    assert evacuations.evacuate(hall.context, "beta")["waiting_for"] == "1 move is at work"
    play(hall)
    beat(hall)
    play(hall)
    assert (show(hall, 2)["state"], where(hall)[to_beta] in ("alpha", "beta")) == ("drained", False)


def test_given_up_it_says_what_is_at_work_and_who_is_elsewhere(hall: World) -> None:
    evacuations.evacuate(hall.context, "alpha")
    assert evacuations.cancel(hall.context, 1, undo=False)["waiting_for"] == "3 moves are at work; it begins no more"
    play(hall)
    assert show(hall)["waiting_for"] == "nothing: it is over; 3 VMs are away from alpha: haulier restore alpha"
    evacuations.restore(hall.context, "alpha")
    play(hall)
    assert show(hall)["waiting_for"] == "nothing: it is over"


def test_newest_try_counts(hall: World) -> None:
    evacuations.evacuate(hall.context, "alpha")
    hall.change(Migration, state=MigrationState.UNDONE, finished_at=now())
    evacuations.resume(hall.context, 1)
    assert hall.count(Migration) == 6
    assert list_evacuations(hall.context)[0]["counts"] == {"running": 3}
    assert {each["migration"] for each in show(hall)["plan"]} == {4, 5, 6}


def test_as_many_statements_for_many_evacuations_as_for_few(hall: World) -> None:
    evacuations.evacuate(hall.context, "alpha")
    play(hall)
    with statements(hall) as of_list:
        list_evacuations(hall.context)
    with statements(hall) as of_one:
        show(hall)
    evacuations.cancel(hall.context, 1, undo=False)
    for number in range(8):
        hall.add_vm(f"more{number}", pinned={"ram_kib": 1 << 18})
    evacuations.evacuate(hall.context, "alpha")
    play(hall)
    evacuations.evacuate(hall.context, "beta")
    play(hall)
    with statements(hall) as of_more:
        assert len(list_evacuations(hall.context)) == 3
    with statements(hall) as of_larger:
        assert len(show(hall, 2)["plan"]) == 8
    assert len(of_more) == len(of_list) <= 3
    assert len(of_larger) == len(of_one)

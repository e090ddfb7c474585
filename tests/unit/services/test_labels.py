"""Migrations are held by their label: paused, or begun at a rate that is counted from the rows."""

from __future__ import annotations

from dataclasses import replace
from datetime import timedelta

import pytest
from sqlalchemy import select

from haulier.clock import now
from haulier.definition.batch_file import BatchFile
from haulier.errors import Refused
from haulier.planner.admission import MOST_KEPT, PATIENCE_S
from haulier.planner.labels import Rate
from haulier.services import batch_filing, forecast, migrations
from haulier.services.admission import admit
from haulier.services.filing import Terms
from haulier.services.labels import pause_labels
from haulier.services.limits import LimitChange, set_limits, show_limits
from haulier.services.queue import list_queue
from models import Attempt, LimitScope, Migration, Node, QueueLabel, Vm
from tests.unit.services.test_admission import add_node, admits, states
from tests.unit.services.test_batches import file_of
from tests.unit.services.test_tries import PASSING, fail, let_delay_pass
from tests.unit.services.world import World, neighbour

HOUR = Rate(2, 3600)


def file(world: World, *names: str, label: str | None, tries: int = 1) -> list[int]:
    """These VMs, which are added, are to go to beta; `web` is there already."""
    terms = Terms(label=label, tries=tries)
    for name in names:
        if name != "web":
            world.add_vm(name)
    return [migrations.file_migration(world.context, name, target="beta", terms=terms) for name in names]


def pause(world: World, *labels: str) -> list[dict[str, object]]:
    return pause_labels(world.context, labels, paused=True)


def resume(world: World, *labels: str) -> list[dict[str, object]]:
    return pause_labels(world.context, labels, paused=False)


def rate(world: World, label: str, rate: Rate | None) -> None:
    set_limits(world.context, [], rates={label: rate})


def holds(world: World) -> dict[str, str]:
    return {each["vm"]: each["waiting_for"]["text"] for each in list_queue(world.context)}


def test_paused_label_holds_those_that_have_it(world: World) -> None:
    pause(world, "nightly")
    file(world, "web", label="nightly")
    file(world, "db", label="daily")
    file(world, "ci", label=None)
    assert states(world) == ["queued", "running", "running"]
    assert holds(world) == {"web": "label nightly is paused"}
    document = migrations.show_migration(world.context, 1)
    assert (document["label"], document["waiting_for"]["limit"]) == ("nightly", "label")
    assert list_queue(world.context)[0]["starts_in_s"] is None


def test_resumed_label_is_begun(world: World) -> None:
    pause(world, "nightly", "daily")
    file(world, "web", label="nightly")
    world.sent.clear()
    assert resume(world, "nightly") == [{"label": "nightly", "paused": False, "rate": None, "waiting": 1}]
    assert show_limits(world.context)["labels"] == [
        {"label": "daily", "paused": True, "rate": None, "waiting": 0},
        {"label": "nightly", "paused": False, "rate": None, "waiting": 1},
    ]
    assert admits(world), "whoever waits is looked at"
    admit(world.context)
    assert states(world) == ["running"]


def test_what_is_at_work_goes_on(world: World) -> None:
    file(world, "web", label="nightly")
    pause(world, "nightly")
    held = world.take()
    assert held is not None
    assert world.complete(held)
    assert states(world) == ["running"]


def test_rule_that_says_nothing_is_no_row(world: World) -> None:
    resume(world, "nightly")
    rate(world, "nightly", None)
    assert world.count(QueueLabel) == 0
    pause(world, "nightly")
    rate(world, "nightly", HOUR)
    resume(world, "nightly")
    assert world.count(QueueLabel) == 1
    rate(world, "nightly", None)
    assert world.count(QueueLabel) == 0


def test_many_that_are_paused_hide_nobody_behind_them(world: World) -> None:
    pause(world, "nightly")
    file(world, *(f"vm{number}" for number in range(MOST_KEPT + 3)), label="nightly")
    file(world, "web", label=None)
    assert states(world).count("running") == 1
    assert set(holds(world).values()) == {"label nightly is paused"}


def test_many_that_are_paused_do_not_hide_when_others_begin(world: World, monkeypatch: pytest.MonkeyPatch) -> None:
    """Of so many nothing is said, and of so many others behind them there is."""
    monkeypatch.setattr(forecast, "MOST", 3)
    set_limits(world.context, [LimitChange(LimitScope.CLUSTER, (), 1)])
    pause(world, "nightly")
    file(world, *(f"vm{number}" for number in range(3)), label="nightly")
    file(world, "web", "db", label=None)
    assert [each["starts_in_s"] is not None for each in list_queue(world.context)] == [False] * 3 + [True]


def test_rate_holds_what_is_too_much_in_its_time(world: World) -> None:
    rate(world, "nightly", HOUR)
    file(world, "web", "db", "ci", label="nightly")
    file(world, "log", label=None)
    assert states(world) == ["running", "running", "queued", "running"]
    (waits,) = list_queue(world.context)
    assert waits["waiting_for"] == {
        "limit": "rate", "in_use": 2, "allowed": 2, "text": "2 of label nightly were begun in 1h, 2 may be",
    }  # fmt: skip
    assert 3500 < waits["starts_in_s"] <= 3601
    world.change(Attempt, Attempt.migration_id == 1, started_at=now() - timedelta(seconds=3601))
    admit(world.context)
    assert states(world) == ["running"] * 4


def test_each_try_counts(world: World) -> None:
    rate(world, "nightly", HOUR)
    file(world, "web", label="nightly", tries=3)
    for _ in range(2):
        fail(world, PASSING)
        let_delay_pass(world)
    assert (world.count(Attempt), states(world)) == (2, ["queued"])
    assert holds(world) == {"web": "2 of label nightly were begun in 1h, 2 may be"}


@pytest.mark.parametrize(("ahead_s", "state"), [(30, "queued"), (120, "running")])
def test_clock_that_was_put_back_holds_nobody_for_long(world: World, ahead_s: float, state: str) -> None:
    """Another host's clock may be a little ahead; what is farther ahead was begun before a clock was put back."""
    rate(world, "nightly", Rate(1, 3600))
    file(world, "web", label="nightly")
    world.change(Attempt, started_at=now() + timedelta(seconds=ahead_s))
    file(world, "db", label="nightly")
    assert states(world) == ["running", state]


def test_another_hosts_clock_that_is_ahead_hides_none_of_those_begun(world: World) -> None:
    """Two of a rate of two count, the one of now and the one of soon."""
    rate(world, "nightly", HOUR)
    file(world, "web", label="nightly")
    world.change(Attempt, started_at=now() + timedelta(seconds=30))
    file(world, "db", "ci", label="nightly")
    assert states(world) == ["running", "running", "queued"]


def test_many_of_a_held_label_hide_nobody_for_whom_room_is_kept(world: World) -> None:
    """One waits for long to leave alpha, which is full; what is free at gamma is kept for it."""
    add_node(world, "gamma")
    set_limits(world.context, [LimitChange(LimitScope.OUT, ("alpha",), 1), LimitChange(LimitScope.IN, ("gamma",), 1)])
    file(world, "web", label=None)
    pause(world, "nightly")
    file(world, *(f"vm{number}" for number in range(MOST_KEPT + 3)), label="nightly")
    world.add_vm("old")
    old = migrations.file_migration(world.context, "old", target="gamma")
    world.change(Migration, Migration.id == old, created_at=now() - timedelta(seconds=PATIENCE_S + 1))
    world.add_vm("young")
    with world.context.database.write() as session:
        vm = session.scalars(select(Vm).where(Vm.name == "young")).one()
        vm.node = session.scalars(select(Node).where(Node.name == "beta")).one()
        for volume in vm.volumes:
            volume.storage = vm.node.storages[0]
    migrations.file_migration(world.context, "young", target="gamma")
    assert states(world).count("running") == 1
    assert holds(world)["young"] == "0 go to gamma, 1 may, 1 is kept for who waits for long"


def test_label_goes_with_the_wish_that_is_filed_again(world: World) -> None:
    (number,) = file(world, "web", label="nightly")
    fail(world, PASSING)
    again = migrations.retry_migration(world.context, number)
    assert migrations.show_migration(world.context, again)["label"] == "nightly"


def test_batch_gives_its_label_to_those_without(world: World) -> None:
    neighbour(world)
    world.add_vm("db")
    pause(world, "weekly", "nightly")
    batch = file_of("web", "db")
    mine = BatchFile(tuple(replace(each, label="weekly") for each in batch.entries[:1]))
    both = BatchFile((*mine.entries, batch.entries[1]))
    first = batch_filing.submit(world.context, both, label="nightly")
    assert [(each["vm"], each["waiting_for"]["text"]) for each in first["migrations"]] == [
        ("web", "label weekly is paused"),
        ("db", "label nightly is paused"),
    ]
    assert batch_filing.submit(world.context, both, label="nightly")["again"]
    with pytest.raises(Refused, match="migration_open"):
        batch_filing.submit(world.context, both)


def test_label_of_a_batch_that_is_none_is_refused_with_its_line(world: World) -> None:
    batch = file_of("web")
    wrong = BatchFile(tuple(replace(each, label="two words") for each in batch.entries))
    with pytest.raises(Refused) as caught:
        batch_filing.submit(world.context, wrong)
    assert [problem.message for problem in caught.value.problems] == ["line 2: 'two words' is no label"]
    assert world.count(Migration) == 0


@pytest.mark.parametrize("label", ["", "two words", "-x", "x" * 129])
def test_what_is_no_label_is_refused_and_nothing_is_changed(world: World, label: str) -> None:
    for act in (
        lambda: pause(world, "nightly", label),
        lambda: set_limits(world.context, [], rates={"nightly": HOUR, label: HOUR}),
        lambda: file(world, "web", label=label),
        lambda: batch_filing.submit(world.context, file_of("web"), label=label),
    ):
        with pytest.raises(Refused, match="label"):
            act()
    assert (world.count(QueueLabel), world.count(Migration)) == (0, 0)


@pytest.mark.parametrize("wrong", [Rate(0, 60), Rate(1, 0), Rate(1, 86_401), Rate(100_001, 60)])
def test_what_is_no_rate_is_refused(world: World, wrong: Rate) -> None:
    with pytest.raises(Refused, match="bad_rate"):
        rate(world, "nightly", wrong)
    assert show_limits(world.context)["labels"] == []

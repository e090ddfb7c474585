"""A failure is tried again if its class says that this may help, later each time, as often as was allowed."""

from __future__ import annotations

from datetime import timedelta

import pytest

from haulier.clock import now
from haulier.definition.batch_file import BatchEntry, BatchFile
from haulier.errors import Problem, Refused
from haulier.services import batch_filing, batches, chain, migrations
from haulier.services.admission import admit
from haulier.services.filing import Terms
from haulier.services.lost_nodes import declare_lost
from haulier.services.queue import list_queue
from models import Batch, Migration, Node, Phase, Storage, Vm
from tests.unit.services.world import World

PASSING = Problem("mirror_failed", "the mirror of virtio0 broke", "QEMU's words.")
TARGETS = Problem("no_space", "storage local on beta is full", "Make room.")
LASTING = Problem("tpm_identity_differs", "another TPM", "Look.")


def file(world: World, *, tries: int) -> int:
    terms = Terms(tries=tries)
    return migrations.file_migration(world.context, "web", target="beta", terms=terms)


def fail(world: World, problem: Problem, *, phase: Phase = Phase.RESERVE) -> None:
    """The newest attempt fails in a phase and is undone."""
    held = world.go(phase)
    chain.fail(world.context, held, (problem,))
    undo_all(world)


def undo_all(world: World) -> None:
    while world.sent:
        message = world.sent.pop(0)
        if message.task != "haulier.admit" and (undo := world.claim(message)):
            chain.complete_undo(world.context, undo)


def let_delay_pass(world: World) -> None:
    world.change(Migration, not_before=now() - timedelta(seconds=1))
    admit(world.context)


def test_passing_failure_is_tried_again(world: World) -> None:
    file(world, tries=2)
    fail(world, PASSING)
    document = migrations.show_migration(world.context, 1)
    assert (document["state"], document["attempt"], document["error"]["code"]) == ("queued", 1, "mirror_failed")
    assert document["waiting_for"]["limit"] == "delay"
    assert "the mirror of virtio0 broke" in document["waiting_for"]["text"]
    admit(world.context)
    assert world.state() == "queued", "not before its time"
    let_delay_pass(world)
    assert (world.state(), world.picture(2)) == ("running", "r..........")
    document = migrations.show_migration(world.context, 1)
    assert [each["error"] and each["error"]["code"] for each in document["attempts"]] == ["mirror_failed", None]
    assert (document["error"], document["attempt"]) == (None, 2)


def test_no_more_often_than_allowed(world: World) -> None:
    file(world, tries=2)
    fail(world, PASSING)
    let_delay_pass(world)
    fail(world, PASSING)
    assert world.state() == "undone"
    assert world.kinds() == ["queued", "running", "rolling_back", "queued", "running", "rolling_back", "undone"]
    assert world.migration().finished_at is not None


def test_usually_it_is_tried_once(world: World) -> None:
    world.file()
    fail(world, PASSING)
    assert world.state() == "undone"


@pytest.mark.parametrize("code", ["tpm_identity_differs", "something_new"])
def test_lasting_failure_is_not_tried_again(world: World, code: str) -> None:
    file(world, tries=9)
    fail(world, Problem(code, "words", "hint"))
    assert world.state() == "undone"


def test_refusal_that_passes_is_tried_again(world: World) -> None:
    file(world, tries=2)
    held = world.take()
    chain.fail(world.context, held, (Problem("node_silent", "w", "h"),), outcome=chain.Outcome.REFUSED)
    assert world.state() == "queued"
    let_delay_pass(world)
    assert world.state() == "running"


def test_refusal_that_lasts_is_none_to_be_tried_again(world: World) -> None:
    file(world, tries=9)
    chain.fail(world.context, world.take(), (LASTING,), outcome=chain.Outcome.REFUSED)
    assert world.state() == "refused"


def test_delay_grows(world: World) -> None:
    file(world, tries=3)
    delays = []
    for _ in range(2):
        fail(world, PASSING)
        at = world.migration().not_before
        assert at is not None
        delays.append((at - now()).total_seconds())
        let_delay_pass(world)
    assert 7 < delays[0] < 13 < delays[1] < 25


def test_cancelled_while_it_is_undone(world: World) -> None:
    file(world, tries=9)
    held = world.go(Phase.RESERVE)
    world.change(Migration, cancel_asked=True)
    chain.fail(world.context, held, (PASSING,))
    world.undo_all()
    assert world.state() == "cancelled"


def test_cancelled_between_two_tries(world: World) -> None:
    file(world, tries=9)
    fail(world, PASSING)
    migrations.cancel_migration(world.context, 1)
    let_delay_pass(world)
    assert (world.state(), list_queue(world.context)) == ("cancelled", [])


def test_target_of_the_first_try_cannot_take_the_guest_in_the_second(world: World) -> None:
    """Its worker stood still since before the undo, and both are attempts of one migration that is running."""
    file(world, tries=2)
    move, hand = world.switch_over()
    view = world.view(1)
    for half in (move, hand):
        chain.fail(world.context, half, (PASSING,))
    while world.sent:
        if undo := world.claim(world.sent.pop(0)):
            chain.complete_undo(world.context, undo)
    assert world.state() == "queued"
    let_delay_pass(world)
    assert world.state() == "running"
    assert not world.commit(hand, view)
    assert (world.vm().node.name, world.vm().epoch, world.state()) == ("alpha", 0, "running")


def test_vm_is_free_between_two_tries(world: World) -> None:
    """Its source keeps it, and nothing of the try is left."""
    file(world, tries=2)
    fail(world, PASSING)
    world.change(Node, Node.name == "beta", heartbeat_at=None)
    let_delay_pass(world)
    assert list_queue(world.context)[0]["waiting_for"]["limit"] == "node"


def add_gamma(world: World, *, free: int = 1 << 40) -> None:
    with world.context.database.write() as session:
        facts = {"ram_free_bytes": free}
        node = Node(name="gamma", address="g", port_first=1, port_last=9, heartbeat_at=now(), facts=facts)
        node.storages.append(Storage(name="local", kind="folder", path="/gamma/images"))
        session.add(node)


def test_another_target_if_nobody_named_it(world: World) -> None:
    add_gamma(world)
    file(world, tries=2)
    world.change(Migration, target_auto=True)
    fail(world, TARGETS)
    let_delay_pass(world)
    document = migrations.show_migration(world.context, 1)
    assert (document["state"], document["target"]) == ("running", "gamma")
    assert [each["target"] for each in document["attempts"]] == ["beta", "gamma"]
    assert world.view(2).target.name == "gamma"


@pytest.mark.parametrize(("problem", "auto"), [(TARGETS, False), (PASSING, True)])
def test_same_target_else(world: World, problem: Problem, *, auto: bool) -> None:
    add_gamma(world)
    file(world, tries=2)
    world.change(Migration, target_auto=auto)
    fail(world, problem)
    let_delay_pass(world)
    assert migrations.show_migration(world.context, 1)["target"] == "beta"


def test_same_target_if_there_is_no_other(world: World) -> None:
    add_gamma(world, free=1)
    file(world, tries=2)
    world.change(Migration, target_auto=True)
    fail(world, TARGETS)
    let_delay_pass(world)
    assert migrations.show_migration(world.context, 1)["target"] == "beta"


def test_time_out_is_of_each_try(world: World) -> None:
    migrations.file_migration(world.context, "web", target="beta", terms=Terms(tries=2, timeout_s=60.0))
    world.change(Migration, started_at=now() - timedelta(hours=1))
    world.sweep()
    assert world.state() == "running"


@pytest.mark.parametrize("tries", [0, -1, 101])
def test_tries_that_are_none(tries: int) -> None:
    with pytest.raises(Refused) as caught:
        Terms(tries=tries)
    assert caught.value.code == "bad_tries"


# -- nobody wants another try -----------------------------------------------------------------------------------------


def test_cancelled_while_its_check_is_refused(world: World) -> None:
    file(world, tries=9)
    held = world.take()
    world.change(Migration, cancel_asked=True)
    chain.fail(world.context, held, (Problem("node_silent", "w", "h"),), outcome=chain.Outcome.REFUSED)
    assert world.state() == "refused"


def test_cancelled_while_it_is_undone_to_be_tried_again(world: World) -> None:
    file(world, tries=9)
    chain.fail(world.context, world.go(Phase.RESERVE), (PASSING,))
    assert world.state() == "rolling_back"
    migrations.cancel_migration(world.context, 1)
    world.undo_all()
    assert world.state() == "cancelled"


def test_last_try_that_is_undone_is_not_cancelled(world: World) -> None:
    file(world, tries=1)
    chain.fail(world.context, world.go(Phase.RESERVE), (PASSING,))
    with pytest.raises(Refused) as caught:
        migrations.cancel_migration(world.context, 1)
    assert caught.value.code == "migration_over"


def test_source_is_lost(world: World) -> None:
    file(world, tries=9)
    world.go(Phase.RESERVE)
    world.silence("alpha")
    declare_lost(world.context, "alpha", is_off=True)
    world.settle()
    assert world.state() == "undone"


@pytest.mark.parametrize("late", [False, True])
def test_its_batch_is_cancelled(world: World, *, late: bool) -> None:
    """Before it has failed; or in the same moment, so that neither saw the other."""
    batch_filing.submit(world.context, BatchFile((BatchEntry(1, "web", "beta", None, (), None),)))
    held = world.go(Phase.RESERVE)
    if not late:
        batches.cancel(world.context, 1, undo=False)
    chain.fail(world.context, held, (PASSING,))
    undo_all(world)
    if late:
        world.change(Batch, state="cancelled")
        admit(world.context)
    assert world.state() == ("cancelled" if late else "undone")
    assert list_queue(world.context) == []


def test_reason_of_the_last_try_is_none_of_a_later_refusal(world: World) -> None:
    file(world, tries=9)
    fail(world, PASSING)
    world.change(Vm, state="stopped")
    let_delay_pass(world)
    assert [each["code"] for each in migrations.show_migration(world.context, 1)["errors"]] == ["vm_not_running"]

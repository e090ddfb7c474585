"""A node is emptied by what the rows say: every VM gets a way or a reason, whoever fails or dies, and comes home."""

from __future__ import annotations

from datetime import timedelta
from functools import partial
from itertools import count

import pytest
from sqlalchemy import select

from haulier.clock import now
from haulier.errors import Problem, Refused
from haulier.services import evacuation_steps, evacuations, rules
from haulier.services.admission import admit
from haulier.services.evacuation_steps import go_on
from haulier.services.evacuation_wishes import Wishes
from haulier.services.filing import Terms
from haulier.services.limits import LimitChange, set_limits
from haulier.services.lost_nodes import declare_lost
from haulier.services.migrations import cancel_migration, file_migration
from haulier.services.nodes import NodeChange, change_node
from haulier.services.vms import set_policy
from models import (
    EvacuationPolicy,
    LimitScope,
    Migration,
    Node,
    Operation,
    RuleKind,
    Storage,
    Vm,
    VmState,
)
from tests.unit.services.hall import GIB, beat, hold, play, show, state_of, where
from tests.unit.services.world import World, between, neighbour

NO_SPACE = Problem("no_space", "storage local is full", "Make room.")
PASSING = Problem("mirror_failed", "the mirror broke", "Again.")


def test_all_leave_and_the_node_is_drained(hall: World) -> None:
    document = evacuations.evacuate(hall.context, "alpha")
    assert (document["state"], document["again"], state_of(hall, "alpha")) == ("running", False, "draining")
    assert {each["vm"] for each in document["plan"]} == {"web", "db", "mail"}
    play(hall)
    document = show(hall)
    assert (document["state"], document["counts"], document["eta_s"]) == ("drained", {"done": 3}, 0.0)
    assert "alpha" not in where(hall).values()
    assert len(set(where(hall).values())) == 3, "one on each is the best balance"
    assert state_of(hall, "alpha") == "drained"
    assert hall.kinds("evacuation.") == ["planned", "placed", "placed", "placed", "running", "drained"]
    assert "haulier restore alpha" in document["waiting_for"]


def test_plan_touches_nothing_and_is_what_is_done(hall: World) -> None:
    plan = evacuations.plan_evacuation(hall.context, "alpha")
    assert (hall.count(Migration), hall.kinds("evacuation."), state_of(hall, "alpha")) == (0, [], "online")
    document = evacuations.evacuate(hall.context, "alpha")
    planned = {each["vm"]: each["target"] for each in plan["plan"]}
    assert {each["vm"]: each["target"] for each in document["plan"]} == planned
    assert plan["refusals"] == []


def test_asked_twice_it_is_the_one_that_runs(hall: World) -> None:
    evacuations.evacuate(hall.context, "alpha")
    document = evacuations.evacuate(hall.context, "alpha")
    assert (document["id"], document["again"]) == (1, True)
    assert hall.count(Migration) == 3


def test_whoever_dies_after_the_wish_was_written_is_replaced_by_beat(hall: World) -> None:
    """The row is there, no migration is; the message is lost."""
    evacuations._file(hall.context, "alpha", Wishes())
    hall.sent.clear()
    assert (hall.count(Migration), state_of(hall, "alpha")) == (0, "draining")
    beat(hall)
    assert hall.count(Migration) == 3
    beat(hall, blocked_too=True)
    assert hall.count(Migration) == 3
    admit(hall.context)
    play(hall)
    assert show(hall)["state"] == "drained"


def test_lost_messages_are_made_up_for_by_beat(hall: World) -> None:
    evacuations.evacuate(hall.context, "alpha")
    play(hall, deaf=True)
    assert show(hall)["state"] == "running"
    beat(hall)
    assert show(hall)["state"] == "drained"


def test_target_that_fails_is_left_for_another_and_not_tried_again(hall: World) -> None:
    evacuations.evacuate(hall.context, "alpha")
    first = {each["vm"]: each["target"] for each in show(hall)["plan"]}
    play(hall, broken={"beta": NO_SPACE})
    document = show(hall)
    assert document["state"] == "drained"
    assert "beta" not in where(hall).values()
    tried = [(each.vm_id, each.target_id) for each in _migrations(hall)]
    assert len(tried) == len(set(tried)) == 4
    assert "beta" in first.values()


def _migrations(world: World) -> list[Migration]:
    with world.context.database.read() as session:
        return list(session.scalars(select(Migration).order_by(Migration.id)))


def test_target_that_has_failed_two_gets_no_third(hall: World) -> None:
    """Only delta is open at first, so all are sent there, one after the other, until it is seen that it is delta."""
    for name in ("gamma", "beta"):
        hall.change(Node, Node.name == name, state="maintenance")
    set_limits(hall.context, [LimitChange(LimitScope.CLUSTER, (), 1)])
    evacuations.evacuate(hall.context, "alpha")
    hall.change(Node, Node.name == "gamma", state="online")
    play(hall, broken={"delta": NO_SPACE})
    assert show(hall)["state"] == "drained"
    assert set(where(hall).values()) == {"gamma"}
    assert sum(each.state == "undone" for each in _migrations(hall)) == 2


def test_failure_that_passes_is_tried_again_then_the_vm_stays_and_runs(hall: World) -> None:
    evacuations.evacuate(hall.context, "alpha")
    broken = dict.fromkeys(("beta", "gamma", "delta"), PASSING)
    for _ in range(3):
        hall.change(Migration, not_before=None)
        admit(hall.context)
        play(hall, broken=broken)
    document = show(hall)
    assert document["state"] == "blocked"
    assert [each["code"] for each in document["blocked"]] == ["mirror_failed"] * 3
    assert "the mirror broke" in document["waiting_for"]
    assert set(where(hall).values()) == {"alpha"}
    assert hall.vm().state is VmState.RUNNING
    assert hall.count(Migration) == 3, "what failed for good is not filed again by itself"
    evacuations.resume(hall.context, 1)
    play(hall)
    assert show(hall)["state"] == "drained"


def test_what_waits_for_a_node_that_is_lost_is_placed_again(hall: World) -> None:
    for name in ("gamma", "delta"):
        hall.change(Node, Node.name == name, state="maintenance")
    hold(hall)
    evacuations.evacuate(hall.context, "alpha")
    assert {each["target"] for each in show(hall)["plan"]} == {"beta"}
    for name in ("gamma", "delta"):
        hall.change(Node, Node.name == name, state="online")
    hall.change(Node, Node.name == "beta", state="maintenance")
    beat(hall)
    assert {each["target"] for each in show(hall)["plan"]} == {"gamma", "delta"}
    assert hall.count(Migration) == 3, "they keep their places in the queue"


def test_vm_that_stays_by_its_policy_blocks_and_says_so(hall: World) -> None:
    set_policy(hall.context, "web", EvacuationPolicy.STAY)
    evacuations.evacuate(hall.context, "alpha")
    play(hall)
    document = show(hall)
    assert (document["state"], state_of(hall, "alpha")) == ("blocked", "draining")
    assert [(each["vm"], each["code"]) for each in document["blocked"]] == [("web", "policy_stay")]
    assert where(hall)["web"] == "alpha"
    set_policy(hall.context, "web", EvacuationPolicy.LIVE)
    beat(hall, blocked_too=True)
    play(hall)
    assert show(hall)["state"] == "drained"


def test_stopped_vm_leaves_unless_it_is_moved_live_only(hall: World) -> None:
    hall.change(Vm, Vm.name.in_(("web", "db")), state="stopped")
    set_policy(hall.context, "web", EvacuationPolicy.LIVE)
    evacuations.evacuate(hall.context, "alpha")
    play(hall)
    document = show(hall)
    assert (document["state"], document["left"]) == ("drained", ["web"])
    assert "web is there still" in document["waiting_for"]
    assert evacuations.plan_evacuation(hall.context, "alpha")["left"] == ["web"]
    assert where(hall)["web"] == "alpha"
    assert where(hall)["db"] != "alpha"


def test_where_nothing_can_leave_nothing_is_begun(hall: World) -> None:
    hall.change(Node, Node.name != "alpha", facts={"ram_bytes": GIB, "ram_free_bytes": GIB})
    with pytest.raises(Refused) as refused:
        evacuations.evacuate(hall.context, "alpha")
    (problem,) = refused.value.problems
    assert problem.code == "no_ram"
    assert problem.message.startswith("db, mail, web cannot leave: no node takes it: ")
    assert "it needs 1.0 GiB" in problem.message
    assert (state_of(hall, "alpha"), hall.kinds("evacuation.")) == ("online", [])


def test_of_many_that_cannot_leave_a_few_are_named(hall: World) -> None:
    hall.change(Node, Node.name != "alpha", facts={"ram_bytes": GIB, "ram_free_bytes": GIB})
    for number in range(4):
        hall.add_vm(f"vm{number}", pinned={"ram_kib": 1 << 20})
    hall.change(Vm, Vm.name == "vm0", pinned={"ram_kib": 2 << 20})
    refusals = evacuations.plan_evacuation(hall.context, "alpha")["refusals"]
    assert [each["message"].partition(":")[0] for each in refusals] == [
        "db, mail, vm1, vm2, vm3 and 1 more cannot leave", "vm0 cannot leave",
    ]  # fmt: skip


@pytest.mark.parametrize("change", ["policy", "rule"])
def test_what_held_a_vm_is_asked_again_when_it_is_changed(hall: World, change: str) -> None:
    """At once, and not by the next slow beat."""
    if change == "policy":
        set_policy(hall.context, "web", EvacuationPolicy.STAY)
    else:
        rules.add_rule(hall.context, "here", RuleKind.ONLY_ON, vms=["web"], nodes=["alpha"])
    evacuations.evacuate(hall.context, "alpha")
    play(hall)
    assert show(hall)["state"] == "blocked"
    if change == "policy":
        set_policy(hall.context, "web", EvacuationPolicy.LIVE)
    else:
        rules.remove_rule(hall.context, "here")
    play(hall)
    assert show(hall)["state"] == "drained"


def test_hard_rule_is_kept_and_blocks(hall: World) -> None:
    rules.add_rule(hall.context, "here", RuleKind.ONLY_ON, vms=["web"], nodes=["alpha"])
    rules.add_rule(hall.context, "pair", RuleKind.APART, vms=["db", "mail"])
    evacuations.evacuate(hall.context, "alpha")
    play(hall)
    document = show(hall)
    assert [(each["vm"], each["code"]) for each in document["blocked"]] == [("web", "rule")]
    assert where(hall)["db"] != where(hall)["mail"]


def test_no_spare_is_refused_with_numbers_if_it_is_asked_for(hall: World) -> None:
    hall.change(Node, Node.name.in_(("gamma", "delta")), state="maintenance")
    with pytest.raises(Refused, match="if beta fails, 3 of its 3 guests"):
        evacuations.evacuate(hall.context, "alpha", Wishes(spare=True))
    assert evacuations.evacuate(hall.context, "alpha")["state"] == "running"


def test_deadline_that_cannot_be_kept_is_refused(hall: World) -> None:
    with pytest.raises(Refused) as refused:
        evacuations.evacuate(hall.context, "alpha", Wishes(deadline=now() + timedelta(seconds=1)))
    assert refused.value.code == "deadline_too_near"
    with pytest.raises(Refused) as refused:
        evacuations.evacuate(hall.context, "alpha", Wishes(deadline=now() - timedelta(seconds=1)))
    assert refused.value.code == "deadline_over"


def test_lost_and_unknown_nodes_are_refused(hall: World) -> None:
    with pytest.raises(Refused) as refused:
        evacuations.evacuate(hall.context, "omega")
    assert refused.value.code == "unknown_node"
    hall.silence("alpha")
    declare_lost(hall.context, "alpha", is_off=True)
    with pytest.raises(Refused) as refused:
        evacuations.evacuate(hall.context, "alpha")
    assert refused.value.code == "node_lost"


def test_paused_it_begins_no_more_until_it_is_resumed(hall: World) -> None:
    hold(hall)
    evacuations.evacuate(hall.context, "alpha")
    assert evacuations.pause(hall.context, 1)["state"] == "paused"
    beat(hall, blocked_too=True)
    assert show(hall)["state"] == "paused"
    assert "haulier evacuation resume 1" in show(hall)["waiting_for"]
    assert evacuations.resume(hall.context, 1)["state"] == "running"


def test_cancelled_the_node_takes_vms_again(hall: World) -> None:
    evacuations.evacuate(hall.context, "alpha")
    document = evacuations.cancel(hall.context, 1, undo=True)
    assert (document["state"], state_of(hall, "alpha")) == ("cancelled", "online")
    play(hall)
    assert set(where(hall).values()) == {"alpha"}
    with pytest.raises(Refused) as refused:
        evacuations.cancel(hall.context, 1, undo=False)
    assert refused.value.code == "evacuation_over"


def test_whoever_dies_while_he_cancels_leaves_nothing_that_begins(hall: World, monkeypatch: pytest.MonkeyPatch) -> None:
    hold(hall)
    evacuations.evacuate(hall.context, "alpha")
    with monkeypatch.context() as patch:
        patch.setattr(evacuations, "_cancel_batch", lambda *_, **__: pytest.fail("died"))
        with pytest.raises(pytest.fail.Exception):
            evacuations.cancel(hall.context, 1, undo=False)
    set_limits(hall.context, [LimitChange(LimitScope.CLUSTER, (), None)])
    play(hall)
    assert {each.state for each in _migrations(hall)} == {"cancelled"}
    assert set(where(hall).values()) == {"alpha"}


def test_two_evacuations_that_want_each_others_nodes_do_not_meet(hall: World) -> None:
    evacuations.evacuate(hall.context, "alpha")
    with neighbour(hall) as other:
        evacuations.evacuate(other.context, "beta")
    play(hall)
    assert "beta" in where(hall).values(), "what was under way to it arrives, and leaves again"
    assert show(hall, 2)["state"] == "running"
    beat(hall)
    admit(hall.context)
    play(hall)
    assert not {"alpha", "beta"} & set(where(hall).values())
    assert (show(hall, 1)["state"], show(hall, 2)["state"]) == ("drained", "drained")


def test_migration_that_a_user_has_under_way_is_waited_for(hall: World) -> None:
    file_migration(hall.context, "web", target="beta", terms=Terms())
    document = evacuations.evacuate(hall.context, "alpha")
    assert {each["vm"] for each in document["plan"]} == {"db", "mail"}
    play(hall)
    assert show(hall)["state"] == "drained"


def test_migration_that_a_user_cancels_stays_cancelled(hall: World) -> None:
    evacuations.evacuate(hall.context, "alpha")
    cancel_migration(hall.context, 1)
    play(hall)
    document = show(hall)
    assert document["state"] == "blocked"
    assert [each["code"] for each in document["blocked"]] == ["migration_cancelled"]


def test_node_that_is_emptied_takes_nothing(hall: World) -> None:
    hall.change(Vm, Vm.name == "web", state="stopped")
    set_policy(hall.context, "web", EvacuationPolicy.LIVE)
    evacuations.evacuate(hall.context, "alpha")
    play(hall)
    with pytest.raises(Refused, match="alpha was emptied"):
        file_migration(hall.context, "db", target="alpha")


def test_node_that_is_declared_lost_blocks_and_files_nothing_more(hall: World) -> None:
    hold(hall)
    evacuations.evacuate(hall.context, "alpha")
    hall.silence("alpha")
    declare_lost(hall.context, "alpha", is_off=True)
    for _ in range(3):
        beat(hall, blocked_too=True)
        admit(hall.context)
    document = show(hall)
    assert (document["state"], hall.count(Migration)) == ("blocked", 3)
    assert {each["code"] for each in document["blocked"]} == {"node_lost"}
    assert "haulier recover" in document["waiting_for"]
    assert state_of(hall, "alpha") == "lost"
    hall.change(Vm, node_id=2)
    beat(hall, blocked_too=True)
    assert (show(hall)["state"], state_of(hall, "alpha")) == ("drained", "lost"), "what was recovered is not there"
    evacuations.cancel(hall.context, 1, undo=False)
    assert state_of(hall, "alpha") == "lost"


def test_node_that_is_emptied_is_not_opened_behind_its_evacuation(hall: World) -> None:
    evacuations.evacuate(hall.context, "alpha")
    with pytest.raises(Refused, match="alpha belongs to evacuation 1"):
        change_node(hall.context, "alpha", NodeChange(maintenance=False))
    assert state_of(hall, "alpha") == "draining"


def test_room_that_is_promised_meanwhile_is_not_given_twice(hall: World) -> None:
    """Between the plan and its rows another migration is filed: the plan is made anew, with that one's room taken."""
    for name in ("gamma", "delta"):
        hall.change(Node, Node.name == name, state="maintenance")
    facts = {"swtpm_version": "0.7.1", "libtpms_version": "0.9.2", "ram_bytes": 5 * GIB, "ram_free_bytes": 5 * GIB}
    hall.change(Node, Node.name == "beta", facts=facts)
    hall.add_vm("other", pinned={"ram_kib": 2 << 20})
    hall.change(Vm, Vm.name == "other", node_id=3)
    hall.change(Node, Node.name == "gamma", state="online")
    hold(hall)
    file_other = partial(file_migration, hall.context, "other", target="beta")
    hall.change(Node, Node.name == "gamma", state="maintenance")
    evacuations._file(hall.context, "alpha", Wishes())
    with between(hall, "BEGIN IMMEDIATE", file_other) as filed:
        go_on(hall.context, 1)
    assert filed.result() > 0
    document = show(hall)
    assert len(document["plan"]) == 2
    assert [each["code"] for each in document["blocked"]] == ["no_ram"]


def test_where_somebody_files_at_each_moment_the_last_plan_stands(hall: World, monkeypatch: pytest.MonkeyPatch) -> None:
    numbers = count(100)
    monkeypatch.setattr(evacuation_steps, "newest_promise", lambda _: (next(numbers), 0))
    evacuations.evacuate(hall.context, "alpha")
    assert hall.count(Migration) == 3


def test_last_place_of_others_is_not_taken_away(hall: World) -> None:
    """What waits to leave alpha could go to two nodes, then to one, then to none."""
    hold(hall)
    evacuations.evacuate(hall.context, "alpha")
    evacuations.evacuate(hall.context, "beta")
    evacuations.evacuate(hall.context, "gamma")
    beat(hall)
    assert {each["target"] for each in show(hall)["plan"]} == {"delta"}
    with pytest.raises(Refused) as refused:
        evacuations.evacuate(hall.context, "delta")
    assert {problem.code for problem in refused.value.problems} == {"evacuations_meet"}
    assert "VM db, which is to leave alpha, has no other place" in refused.value.problems[0].message
    assert state_of(hall, "delta") == "online"
    plan = evacuations.plan_evacuation(hall.context, "delta")
    assert (plan["plan"], len(plan["refusals"])) == ([], 3)


def test_node_is_not_drained_before_its_last_migration_has_ended(hall: World) -> None:
    """The guest is on its target, and its old volumes are not away yet."""
    evacuations.evacuate(hall.context, "alpha")
    hall.change(Vm, node_id=2)
    beat(hall)
    assert (show(hall)["state"], state_of(hall, "alpha")) == ("running", "draining")


def test_way_back_is_shown_as_such(hall: World) -> None:
    set_policy(hall.context, "db", EvacuationPolicy.STAY)
    evacuations.evacuate(hall.context, "alpha")
    play(hall)
    assert show(hall)["waiting_for"].startswith("db cannot leave: VM db stays by its policy")
    rules.add_rule(hall.context, "out", RuleKind.NOT_ON, vms=["web"], nodes=["alpha"])
    evacuations.restore(hall.context, "alpha")
    play(hall)
    document = show(hall)
    assert [(each["vm"], each["target"], each["state"]) for each in document["plan"]] == [("mail", "alpha", "done")]
    assert document["counts"] == {"done": 1}
    (away,) = document["blocked"]
    assert (away["vm"], away["now_on"], away["code"]) == ("web", where(hall)["web"], "rule")
    assert away["message"] == "rule out keeps it from alpha"


def test_node_that_is_declared_lost_while_places_are_looked_for_stays_lost(hall: World) -> None:
    hall.silence("alpha")
    is_lost = partial(declare_lost, hall.context, "alpha", is_off=True)
    with between(hall, "BEGIN IMMEDIATE", is_lost), pytest.raises(Refused, match="declared lost"):
        evacuations.evacuate(hall.context, "alpha")
    assert (state_of(hall, "alpha"), hall.count(Migration), hall.kinds("evacuation.")) == ("lost", 0, [])


def test_node_that_is_back_belongs_to_its_evacuation_again(hall: World) -> None:
    """Its worker was heard after it had been declared lost: it is in maintenance then, and not opened by hand."""
    hold(hall)
    evacuations.evacuate(hall.context, "alpha")
    hall.change(Node, Node.name == "alpha", state="maintenance")
    with pytest.raises(Refused, match="belongs to evacuation 1"):
        change_node(hall.context, "alpha", NodeChange(maintenance=False))
    beat(hall)
    assert state_of(hall, "alpha") == "draining"


def test_what_a_user_has_sent_to_a_closed_node_is_left_to_him_and_named(hall: World) -> None:
    hold(hall)
    file_migration(hall.context, "db", target="beta")
    hall.change(Node, Node.name == "beta", state="maintenance")
    evacuations.evacuate(hall.context, "alpha")
    targets = {each.vm_id: each.target_id for each in _migrations(hall)}
    assert targets[hall.vm("db").id] == 2
    set_limits(hall.context, [LimitChange(LimitScope.CLUSTER, (), None)])
    play(hall)
    document = show(hall)
    assert document["state"] == "running"
    assert "db, for: node beta is in maintenance" in document["waiting_for"]


@pytest.mark.parametrize("policy", [EvacuationPolicy.STAY, EvacuationPolicy.LIVE])
def test_policy_is_asked_again_when_a_move_begins(hall: World, policy: EvacuationPolicy) -> None:
    """Since it was filed somebody said that the VM stays; or one that moves only while it runs has stopped."""
    hold(hall)
    if policy is EvacuationPolicy.LIVE:
        set_policy(hall.context, "web", policy)
    evacuations.evacuate(hall.context, "alpha")
    if policy is EvacuationPolicy.LIVE:
        hall.change(Vm, Vm.name == "web", state=VmState.STOPPED)
    set_policy(hall.context, "web", policy)
    set_limits(hall.context, [LimitChange(LimitScope.CLUSTER, (), None)])
    play(hall)
    document = show(hall)
    assert where(hall)["web"] == "alpha"
    if policy is EvacuationPolicy.LIVE:
        assert (document["state"], document["left"]) == ("drained", ["web"])
        return
    assert [(each["vm"], each["code"]) for each in document["blocked"]] == [("web", "policy_stay")]
    set_policy(hall.context, "web", EvacuationPolicy.OFFLINE_IF_STOPPED)
    beat(hall, blocked_too=True)
    play(hall)
    assert show(hall)["state"] == "drained", "nobody needs to resume it"


def test_vm_that_is_being_made_is_waited_for(hall: World) -> None:
    hall.add_vm("new", state="stopped")
    with hall.context.database.write() as session:
        made = Operation(vm_id=hall.vm("new").id, node_id=1, kind="create", state="running", created_at=now())
        session.add(made)
    evacuations.evacuate(hall.context, "alpha")
    play(hall)
    assert (show(hall)["state"], where(hall)["new"]) == ("running", "alpha")
    hall.change(Operation, state="done", finished_at=now())
    beat(hall)
    play(hall)
    assert (show(hall)["state"], "alpha" in where(hall).values()) == ("drained", False)


def test_what_three_targets_have_failed_is_not_sent_to_a_fourth(hall: World) -> None:
    with hall.context.database.write() as session:
        for number in range(6):
            node = Node(name=f"more{number}", address="a", port_first=61000, port_last=61999, heartbeat_at=now())
            node.storages.append(Storage(name="local", kind="folder", path=f"/more{number}/images"))
            node.facts = session.scalars(select(Node.facts).where(Node.name == "beta")).one()
            session.add(node)
    for name in ("db", "mail"):
        set_policy(hall.context, name, EvacuationPolicy.STAY)
    evacuations.evacuate(hall.context, "alpha")
    play(hall, broken=dict.fromkeys(("beta", "gamma", "delta", *(f"more{each}" for each in range(6))), NO_SPACE))
    assert (show(hall)["state"], hall.count(Migration)) == ("blocked", 3)
    assert [each["code"] for each in show(hall)["blocked"] if each["vm"] == "web"] == ["no_space"]

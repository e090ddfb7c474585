"""Whom a rule keeps apart from one that has not left yet waits for that, unless waiting alone cannot end."""

from __future__ import annotations

import pytest

from haulier.clock import now
from haulier.errors import Problem
from haulier.services import evacuations, rules
from haulier.services.admission import admit
from haulier.services.limits import LimitChange, set_limits
from haulier.services.migrations import file_migration
from haulier.services.vms import set_policy
from models import (
    Batch,
    BatchState,
    EvacuationPolicy,
    LimitScope,
    Migration,
    Node,
    RuleKind,
    Vm,
    VmState,
    Volume,
)
from tests.unit.services.hall import beat, hold, play, show, where
from tests.unit.services.world import World


def pair_apart(hall: World) -> None:
    """`web` may leave alpha for beta only, and `mail` is to be elsewhere: it is on beta, about to leave."""
    hall.change(Vm, Vm.name == "mail", node_id=2)
    hall.change(Volume, Volume.vm_id == 3, storage_id=2)
    rules.add_rule(hall.context, "pair", RuleKind.APART, vms=["web", "mail"])
    rules.add_rule(hall.context, "near", RuleKind.ONLY_ON, vms=["web"], nodes=["alpha", "beta"])
    hold(hall)


def free(hall: World) -> None:
    set_limits(hall.context, [LimitChange(LimitScope.CLUSTER, (), None)])


@pytest.mark.parametrize("alone", [False, True])
def test_place_is_taken_when_whoever_must_be_apart_has_left_it(hall: World, alone: bool) -> None:
    if alone:
        set_policy(hall.context, "db", EvacuationPolicy.LIVE)
        hall.change(Vm, Vm.name == "db", state=VmState.STOPPED)
    pair_apart(hall)
    file_migration(hall.context, "mail", target="gamma")
    document = evacuations.evacuate(hall.context, "alpha")
    assert "web" not in {each["vm"] for each in document["plan"]}
    assert [(each["vm"], each["code"]) for each in document["blocked"]] == [("web", "partner_leaving")]
    beat(hall)
    assert show(hall)["state"] == "running", "it waits, and nobody has to look"
    free(hall)
    hall.sent.clear()
    admit(hall.context)
    play(hall)
    assert where(hall)["mail"] == "gamma"
    beat(hall)
    play(hall)
    assert (show(hall)["state"], where(hall)["web"]) == ("drained", "beta")


def test_place_is_given_up_when_whoever_must_be_apart_stays_there(hall: World) -> None:
    pair_apart(hall)
    file_migration(hall.context, "mail", target="gamma")
    evacuations.evacuate(hall.context, "alpha")
    free(hall)
    play(hall, broken={"gamma": Problem("disk_broken", "it is broken", "Mend it.")})
    beat(hall)
    play(hall)
    document = show(hall)
    assert (document["state"], where(hall)["web"], where(hall)["mail"]) == ("blocked", "alpha", "beta")
    assert [each["code"] for each in document["blocked"]] == ["rule"]


def test_pair_apart_that_leaves_one_node_does_not_wait_for_each_other(hall: World) -> None:
    rules.add_rule(hall.context, "pair", RuleKind.APART, vms=["web", "mail", "db"])
    evacuations.evacuate(hall.context, "alpha")
    play(hall)
    assert (show(hall)["state"], len(set(where(hall).values()))) == ("drained", 3)


@pytest.mark.parametrize("by", ["target", "batch", "operator"])
def test_who_cannot_leave_by_itself_is_not_waited_for(hall: World, by: str) -> None:
    """Two that are to change places would wait for each other for ever: the reason is told."""
    pair_apart(hall)
    file_migration(hall.context, "mail", target="alpha" if by == "target" else "gamma")
    if by == "batch":
        with hall.context.database.write() as session:
            batch = Batch(key="k", name="k", forgiven=0, created_at=now(), state=BatchState.PAUSED)
            session.add(batch)
            session.flush()
            session.get_one(Migration, 1).batch_id = batch.id
    if by == "operator":
        hall.change(Migration, needs_operator=True)
    (blocked,) = evacuations.plan_evacuation(hall.context, "alpha")["blocked"]
    evacuations.evacuate(hall.context, "alpha")
    free(hall)
    play(hall)
    beat(hall, blocked_too=True)
    play(hall)
    document = show(hall)
    assert (document["state"], where(hall)["web"]) == ("blocked", "alpha")
    assert blocked["code"] == document["blocked"][0]["code"] == "rule"
    assert "which mail is to leave for" in document["waiting_for"]


def test_one_that_comes_home_waits_for_whoever_must_be_apart_to_leave_there(hall: World) -> None:
    evacuations.evacuate(hall.context, "alpha")
    play(hall)
    hall.change(Vm, Vm.name == "mail", node_id=1)
    home = where(hall)
    rules.add_rule(hall.context, "pair", RuleKind.APART, vms=["web", "mail"])
    hall.change(Node, Node.name == "alpha", state="online")
    hold(hall)
    file_migration(hall.context, "mail", target=home["db"])
    hall.change(Node, Node.name == "alpha", state="drained")
    document = evacuations.restore(hall.context, "alpha")
    assert [(each["vm"], each["code"]) for each in document["blocked"]] == [("web", "partner_leaving")]
    beat(hall)
    assert show(hall)["state"] == "restoring"
    free(hall)
    for _ in range(2):
        admit(hall.context)
        play(hall)
        beat(hall)
    assert (show(hall)["state"], where(hall)["web"], where(hall)["mail"]) == ("restored", "alpha", home["db"])

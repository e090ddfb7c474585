"""Many migrations are planned as each alone would be, in as many statements as one."""

from __future__ import annotations

from typing import Any

import pytest
from sqlalchemy import select

from haulier.planner.refusals import STARTED, refuse_filing
from haulier.services.filing import Plan, Terms, Wanted, plan_migration, plan_migrations
from haulier.services.migrations import file_migration
from models import Migration, Node, Operation, Storage, Vm, VmState, Volume, VolumeRole
from tests.unit.services.hall import hold
from tests.unit.services.world import World, statements

TARGETS = ("beta", "gamma", "delta", "beta", "gamma")


@pytest.fixture
def crowd(hall: World) -> World:
    """Of five VMs one has a replica and starts just now, one waits to go, one cannot keep a name, one is stopped."""
    hold(hall)
    for name in ("idle", "other"):
        hall.add_vm(name, pinned={"ram_kib": 1 << 20})
    hall.change(Vm, Vm.name == "idle", state=VmState.STOPPED)
    hall.add_replica("gamma", "db/disk.qcow2", vm_id=hall.vm("db").id)
    file_migration(hall.context, "mail", target="delta")
    with hall.context.database.write() as session:
        db, beta = hall.vm("db"), hall.vm().node_id + 1
        session.add(Operation(vm_id=db.id, node_id=1, kind="start", state="running", created_at=db.created_at))
        storage = session.scalars(select(Storage).where(Storage.node_id == beta)).one()
        its = Vm(name="its", node_id=beta, definition=db.definition, created_at=db.created_at)
        its.volumes.append(
            Volume(device="scsi0", role=VolumeRole.DISK, storage=storage, name="web/ci.raw", format="raw", size_bytes=1)
        )
        session.add(its)
    return hall


def said(plan: Plan) -> tuple[Any, ...]:
    crossings = [
        (each.volume.name, each.choice, each.to, each.storage and each.storage.path, each.stays, each.name_is_taken,
         each.replica and each.replica.name)
        for each in plan.crossings
    ]  # fmt: skip
    return crossings, plan.facts, plan.bytes


def wishes(vms: list[Vm], nodes: dict[str, Node]) -> list[Wanted]:
    return [
        Wanted(vm, nodes[target], Terms(offline=vm.state not in STARTED))
        for vm, target in zip(vms, TARGETS, strict=False)
    ]


def test_many_are_planned_as_each_alone_would_be(crowd: World) -> None:
    with crowd.context.database.read() as session:
        vms = list(session.scalars(select(Vm).where(Vm.name != "its").order_by(Vm.name)))
        nodes = {node.name: node for node in session.scalars(select(Node))}
        wanted = wishes(vms, nodes)
        plans = plan_migrations(crowd.context, session, wanted)
        for each, plan in zip(wanted, plans, strict=True):
            assert said(plan) == said(plan_migration(crowd.context, session, each.vm, each.target, each.terms))
    codes = {plan.facts.vm: [problem.code for problem in refuse_filing(plan.facts)] for plan in plans}
    assert codes == {"db": ["operation_open"], "idle": [], "mail": ["migration_open"], "other": [], "web": []}
    assert [plan.facts.offline for plan in plans] == [False, True, False, False, False]


def test_name_that_is_taken_and_replicas_are_found_for_each(crowd: World) -> None:
    with crowd.context.database.read() as session:
        vms = [session.scalars(select(Vm).where(Vm.name == name)).one() for name in ("web", "db")]
        nodes = {node.name: node for node in session.scalars(select(Node))}
        web, db = plan_migrations(crowd.context, session, wishes(vms, nodes))
        assert web.facts.names_taken == ("local:web/ci.raw",)
        replicas = {each.volume.device: each.replica and each.replica.name for each in db.crossings}
        assert replicas == {"scsi0": "db/disk.qcow2", "ide2": None, "tpmstate0": None}


def test_one_that_waits_is_no_obstacle_to_itself(crowd: World) -> None:
    with crowd.context.database.read() as session:
        vm = session.scalars(select(Vm).where(Vm.name == "mail")).one()
        beta = session.scalars(select(Node).where(Node.name == "beta")).one()
        number = session.scalars(select(Migration.id)).one()
        for but, expected in ((None, number), (number, None)):
            assert plan_migration(crowd.context, session, vm, beta, Terms(), but=but).facts.open_migration == expected


def test_as_many_statements_for_many_as_for_one(crowd: World) -> None:
    with crowd.context.database.read() as session:
        vms = list(session.scalars(select(Vm).where(Vm.name != "its").order_by(Vm.name.desc())))
        nodes = {node.name: node for node in session.scalars(select(Node))}
        with statements(crowd) as of_many:
            plan_migrations(crowd.context, session, wishes(vms, nodes))
        session.expunge_all()
        vm, beta = session.get_one(Vm, 1), session.get_one(Node, 2)
        assert vm.node.name == "alpha"
        with statements(crowd) as of_one:
            plan_migration(crowd.context, session, vm, beta, Terms())
    assert len(of_many) == len(of_one) == 7

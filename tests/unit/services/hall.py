"""Four nodes to be emptied and filled, and all workers played at once."""

from __future__ import annotations

from typing import Any

from sqlalchemy import select

from haulier.clock import now
from haulier.errors import Problem
from haulier.services import chain, evacuation_view, roll_steps
from haulier.services.admission import admit
from haulier.services.claims import Claim
from haulier.services.evacuation_steps import go_on, sweep_evacuations
from haulier.services.limits import LimitChange, set_limits
from haulier.services.roll_steps import sweep_rolls
from models import LimitScope, Node, Storage, Vm
from tests.unit.services.world import World

GIB = 1 << 30


def open_hall(world: World) -> World:
    """Four nodes of 16 GiB; `web` and two more VMs of 1 GiB run on alpha."""
    with world.context.database.write() as session:
        for name in ("gamma", "delta"):
            node = Node(name=name, address="10.0.0.9", port_first=61000, port_last=61999, heartbeat_at=now())
            node.storages.append(Storage(name="local", kind="folder", path=f"/{name}/images"))
            session.add(node)
        for node in session.scalars(select(Node)):
            node.facts = {
                "swtpm_version": "0.7.1", "libtpms_version": "0.9.2", "ram_bytes": 16 * GIB, "ram_free_bytes": 16 * GIB,
            }  # fmt: skip
    world.change(Vm, pinned={"ram_kib": 1 << 20})
    for name in ("db", "mail"):
        world.add_vm(name, pinned={"ram_kib": 1 << 20})
    return world


def play(world: World, *, broken: dict[str, Problem] | None = None, deaf: bool = False) -> None:
    """All messages are worked off, as workers would: moves to a node that is `broken` fail at their second step. What
    is for evacuations and rolls is lost if all are `deaf` to it.
    """
    hands = dict[int, Claim]()
    while world.sent:
        message = world.sent.pop(0)
        if message.task == "haulier.evacuate":
            if not deaf:
                go_on(world.context, message.row)
        elif message.task == "haulier.roll":
            if not deaf:
                roll_steps.go_on(world.context, message.row)
        elif message.task == "haulier.admit":
            admit(world.context)
        elif held := world.claim(message):
            view = world.view(held.attempt_id)
            problem = (broken or {}).get(view.target.name)
            if held.undo:
                chain.complete_undo(world.context, held)
            elif problem and held.phase == "reserve":
                chain.fail(world.context, held, (problem,))
            elif held.phase == "hand_over" and not view.offline:
                assert chain.stand_by(world.context, held)
                hands[held.attempt_id] = held
            else:
                assert world.complete(held)
                if held.phase == "move_memory":
                    assert world.complete(hands.pop(held.attempt_id))


def beat(world: World, *, blocked_too: bool = False) -> None:
    """Beat has all that go on looked at; nobody works."""
    sweep_evacuations(world.context, blocked_too=blocked_too)
    sweep_rolls(world.context)
    looks = {"haulier.evacuate": go_on, "haulier.roll": roll_steps.go_on}
    for message in [message for message in world.sent if message.task in looks]:
        world.sent.remove(message)
        looks[message.task](world.context, message.row)


def hold(world: World) -> None:
    """Nothing that waits is begun."""
    set_limits(world.context, [LimitChange(LimitScope.CLUSTER, (), 0)])


def where(world: World) -> dict[str, str]:
    with world.context.database.read() as session:
        return {vm.name: vm.node.name for vm in session.scalars(select(Vm))}


def state_of(world: World, node: str) -> str:
    with world.context.database.read() as session:
        return session.scalars(select(Node.state).where(Node.name == node)).one().value


def show(world: World, number: int = 1) -> dict[str, Any]:
    return evacuation_view.show_evacuation(world.context, number)

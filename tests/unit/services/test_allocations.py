"""What an attempt promises itself on a node: files, RAM, ports; taken once, given back, never twice the same."""

from __future__ import annotations

import dataclasses
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest
from sqlalchemy import select

from haulier.clock import now
from haulier.errors import Refused
from haulier.services import allocations
from haulier.services.attempts import AttemptView, NodeView
from models import Allocation, AllocationKind
from tests.unit.services.world import World


@pytest.fixture
def view(world: World) -> AttemptView:
    world.file()
    return world.view()


def node_with(view: AttemptView, first: int, last: int) -> NodeView:
    return dataclasses.replace(view.target, ports=(first, last))


def open_rows(world: World) -> list[Allocation]:
    with world.context.database.read() as session:
        return list(session.scalars(select(Allocation).where(Allocation.freed_at.is_(None)).order_by(Allocation.id)))


def take(world: World, view: AttemptView, node: NodeView, *avoid: int) -> int:
    return allocations.take_port(world.context, view.attempt_id, node, "disks", avoid=frozenset(avoid))


def test_taking_twice_is_one_row(world: World, view: AttemptView) -> None:
    for _ in range(2):
        allocations.take_volume(world.context, view.attempt_id, view.target, Path("/beta/a"))
        allocations.take_memory(world.context, view.attempt_id, view.target, 1 << 28)
    assert [(row.kind, row.path, row.bytes) for row in open_rows(world)] == [
        (AllocationKind.VOLUME, "/beta/a", None),
        (AllocationKind.MEMORY, None, 1 << 28),
    ]


def test_volumes_of_this_attempt_on_this_node(world: World, view: AttemptView) -> None:
    allocations.take_volume(world.context, view.attempt_id, view.target, Path("/beta/a"))
    allocations.take_volume(world.context, view.attempt_id, view.target, Path("/beta/b"))
    allocations.take_volume(world.context, view.attempt_id, view.source, Path("/alpha/c"))
    allocations.free_allocations(world.context, view.attempt_id, path=Path("/beta/a"))
    assert allocations.allocated_volumes(world.context, view.attempt_id, view.target) == (Path("/beta/b"),)


@pytest.mark.parametrize(
    ("wanted", "left"),
    [
        ({}, []),
        ({"kind": AllocationKind.VOLUME}, ["guest RAM", "disks"]),
        ({"purpose": "disks"}, ["target volume", "guest RAM"]),
        ({"path": Path("/beta/a")}, ["guest RAM", "disks"]),
        ({"path": Path("/beta/none")}, ["target volume", "guest RAM", "disks"]),
    ],
)
def test_freeing(world: World, view: AttemptView, wanted: dict[str, object], left: list[str]) -> None:
    allocations.take_volume(world.context, view.attempt_id, view.target, Path("/beta/a"))
    allocations.take_memory(world.context, view.attempt_id, view.target, 1 << 28)
    take(world, view, view.target)
    for _ in range(2):
        allocations.free_allocations(world.context, view.attempt_id, **wanted)  # type: ignore[arg-type]  # from the table
    assert [row.purpose for row in open_rows(world)] == left


# -- ports ------------------------------------------------------------------------------------------------------------


def test_threads_never_get_the_same_port(world: World, view: AttemptView) -> None:
    node = node_with(view, 62000, 62019)
    with ThreadPoolExecutor(4) as pool:
        taken = list(pool.map(lambda _: take(world, view, node), range(20)))
    assert sorted(taken) == list(range(62000, 62020))


def test_range_that_is_used_up(world: World, view: AttemptView) -> None:
    node = node_with(view, 62000, 62000)
    assert take(world, view, node) == 62000
    with pytest.raises(Refused, match="no_port"):
        take(world, view, node)
    allocations.free_allocations(world.context, view.attempt_id)
    assert take(world, view, node) == 62000


def test_port_of_a_stranger_is_avoided(world: World, view: AttemptView) -> None:
    node = node_with(view, 62000, 62001)
    assert take(world, view, node, 62000) == 62001
    with pytest.raises(Refused, match="no_port"):
        take(world, view, node, 62000)


def test_last_free_port_of_a_large_range_is_found(world: World, view: AttemptView) -> None:
    """`no_port` says that the range is used up: it must be."""
    node = node_with(view, 62000, 62999)
    usual = {"attempt_id": 1, "node_id": node.id, "kind": AllocationKind.PORT, "purpose": "x", "taken_at": now()}
    with world.context.database.write() as session:
        session.add_all(Allocation(address=node.address, port=port, **usual) for port in range(62000, 62999))
    assert take(world, view, node) == 62999


def test_same_port_at_another_address(world: World, view: AttemptView) -> None:
    elsewhere = dataclasses.replace(node_with(view, 62000, 62000), address="10.9.9.9")
    assert take(world, view, node_with(view, 62000, 62000)) == take(world, view, elsewhere) == 62000

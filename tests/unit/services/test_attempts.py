"""What a phase reads of its attempt, and what it promises itself on a node."""

from __future__ import annotations

import dataclasses
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest
from sqlalchemy import select

from haulier.clock import now
from haulier.errors import Refused, StepFailed
from haulier.services import attempts
from haulier.services.attempts import AttemptView, NodeView
from haulier.services.chain import Claim
from models import Allocation, AllocationKind, Phase, Side, Step, TransferMethod, VolumeTransfer
from tests.unit.services.world import IDENTITY, Halves, World


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
    return attempts.take_port(world.context, view.attempt_id, node, "disks", avoid=frozenset(avoid))


def test_view(world: World, view: AttemptView) -> None:
    assert (view.vm, view.epoch, view.number, view.key, view.tpm_identity) == ("web", 0, 1, "1-1", IDENTITY)
    assert (view.source.name, view.target.name, view.target.ports) == ("alpha", "beta", (62000, 62999))
    assert {each.device: each.method for each in view.transfers} == {
        "scsi0": TransferMethod.MIRROR,
        "ide2": TransferMethod.COPY,
        "tpmstate0": TransferMethod.TPM_SYNC,
    }
    assert view.tpm is not None
    assert view.tpm.device == "tpmstate0"
    assert [each.device for each in view.by_method(TransferMethod.MIRROR, TransferMethod.COPY)] == ["scsi0", "ide2"]
    assert view.definition.name == "web"
    assert attempts.require_tpm_transfer(view) == view.tpm


def test_attempt_without_tpm(view: AttemptView) -> None:
    bare = dataclasses.replace(view, transfers=())
    assert bare.tpm is None
    with pytest.raises(StepFailed, match="tpm_missing"):
        attempts.require_tpm_transfer(bare)


def test_notes_of_earlier_steps_are_there(world: World, view: AttemptView) -> None:
    held = world.take()
    attempts.note_on_step(world.context, held, a=1)
    attempts.note_on_step(world.context, held, b=2)
    assert world.view().notes[Phase.CHECK, Side.CONTROL] == {"a": 1, "b": 2}


def test_progress_of_a_transfer(world: World, view: AttemptView) -> None:
    attempts.update_transfer(world.context, view.transfers[0].id, bytes=7, seconds=1.5)
    with world.context.database.read() as session:
        row = session.get_one(VolumeTransfer, view.transfers[0].id)
    assert (row.bytes, row.seconds) == (7, 1.5)


# -- the source's word ------------------------------------------------------------------------------------------------


def test_target_sees_the_sources_word_once_it_is_given(world: World, halves: Halves) -> None:
    move, _ = halves
    assert attempts.source_note(world.context, 1) is None
    assert attempts.note_source_done(world.context, move, {"digest": None, "was_running": True}, {"paused": 1.5})
    assert attempts.source_note(world.context, 1) == attempts.SourceNote(None, True, 1.5)


def test_word_of_an_outdated_source_is_never_seen(world: World, halves: Halves) -> None:
    """Its QEMU may have been told to go on meanwhile."""
    move, _ = halves
    world.let_lease_end(move)
    world.sweep()
    assert not attempts.note_source_done(world.context, move, {"digest": "d", "was_running": True}, {})
    assert attempts.source_note(world.context, 1) is None


def test_word_of_a_source_that_was_replaced_changes_nothing(world: World, halves: Halves) -> None:
    """The step runs again, under another number: what the first worker still has to say is not the second's."""
    move, hand = halves
    world.commit(hand)
    world.let_lease_end(move)
    world.sweep()
    again = world.take()
    assert again.step_id == move.step_id
    assert not attempts.note_source_done(world.context, move, {"digest": "d", "was_running": True}, {})
    assert attempts.source_note(world.context, 1) is None
    assert attempts.note_source_done(world.context, again, {"digest": "e", "was_running": True}, {})


def test_word_survives_the_end_of_the_step(world: World, halves: Halves) -> None:
    move, _ = halves
    attempts.note_source_done(world.context, move, {"digest": "d", "was_running": False}, {"paused": 1.5})
    world.complete(move)
    note = attempts.source_note(world.context, 1)
    assert note == attempts.SourceNote("d", False, 1.5)


# -- volumes and memory -----------------------------------------------------------------------------------------------


def test_taking_twice_is_one_row(world: World, view: AttemptView) -> None:
    for _ in range(2):
        attempts.take_volume(world.context, view.attempt_id, view.target, Path("/beta/a"))
        attempts.take_memory(world.context, view.attempt_id, view.target, 1 << 28)
    assert [(row.kind, row.path, row.bytes) for row in open_rows(world)] == [
        (AllocationKind.VOLUME, "/beta/a", None),
        (AllocationKind.MEMORY, None, 1 << 28),
    ]


def test_volumes_of_this_attempt_on_this_node(world: World, view: AttemptView) -> None:
    attempts.take_volume(world.context, view.attempt_id, view.target, Path("/beta/a"))
    attempts.take_volume(world.context, view.attempt_id, view.target, Path("/beta/b"))
    attempts.take_volume(world.context, view.attempt_id, view.source, Path("/alpha/c"))
    attempts.free_allocations(world.context, view.attempt_id, path=Path("/beta/a"))
    assert attempts.allocated_volumes(world.context, view.attempt_id, view.target) == (Path("/beta/b"),)


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
    attempts.take_volume(world.context, view.attempt_id, view.target, Path("/beta/a"))
    attempts.take_memory(world.context, view.attempt_id, view.target, 1 << 28)
    take(world, view, view.target)
    for _ in range(2):
        attempts.free_allocations(world.context, view.attempt_id, **wanted)  # type: ignore[arg-type]  # from the table
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
    attempts.free_allocations(world.context, view.attempt_id)
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


def test_notes_are_kept_when_a_step_is_done(world: World, view: AttemptView) -> None:
    held: Claim = world.take()
    attempts.note_on_step(world.context, held, port=1)
    world.complete(held)
    with world.context.database.read() as session:
        assert session.get_one(Step, held.step_id).notes == {"port": 1}

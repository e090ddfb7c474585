"""The hand-over's one transaction: volumes, ledger and epoch move together or not at all."""

from __future__ import annotations

import dataclasses
from pathlib import Path

import pytest
from sqlalchemy import event, select
from sqlalchemy.exc import IntegrityError

from haulier.clock import now
from haulier.definition import VmDefinition
from haulier.services.allocations import allocated_volumes, paths_in_use, take_memory, take_port, take_volume
from haulier.services.attempts import AttemptView
from haulier.services.claims import Claim
from haulier.services.migrations import cancel_migration
from haulier.services.ownership import record_proof, record_settled
from haulier.services.replicas import old_files, turn_round
from models import (
    Allocation,
    LedgerRole,
    Migration,
    Phase,
    Replica,
    Replication,
    Step,
    TpmLedger,
    Vm,
    VmState,
    Volume,
    VolumeTransfer,
)
from tests.unit.services.world import DIGEST, IDENTITY, Halves, World


@pytest.fixture
def hand(world: World, halves: Halves) -> Claim:
    """The target is about to commit; the phase reserve has written down its copy of the TPM."""
    _, hand = halves
    world.reserve_tpm(world.view())
    return hand


def volumes(world: World) -> list[tuple[str, str]]:
    with world.context.database.read() as session:
        rows = session.scalars(select(Volume).order_by(Volume.id))
        return [(str(Path(row.storage.path) / row.name), row.device) for row in rows]


def everything(world: World) -> tuple[object, ...]:
    vm = world.vm()
    return (vm.node.name, vm.epoch, vm.pid, vm.qmp, vm.state), world.state(), world.ledger(), volumes(world)


def test_all_of_it_moves(world: World, hand: Claim) -> None:
    assert world.ledger() == [("alpha", "active", 0), ("beta", "reserved", 1)]
    assert world.commit(hand, pid=42, qmp="/there")
    vm = world.vm()
    assert (vm.node.name, vm.epoch, vm.pid, vm.qmp, vm.state) == ("beta", 1, 42, "/there", VmState.PAUSED)
    assert world.state() == "handed_over"
    assert volumes(world) == [
        ("/beta/images/web/disk.qcow2", "scsi0"),
        ("/beta/images/web/ci.raw", "ide2"),
        ("/beta/images/web/tpm.raw", "tpmstate0"),
    ]
    assert world.ledger() == [("alpha", "quarantined", 0), ("beta", "active", 1)]


def test_ledger_knows_the_new_copy_and_keeps_the_old_for_a_while(world: World, hand: Claim) -> None:
    before = now()
    world.commit(hand)
    with world.context.database.read() as session:
        old, new = session.scalars(select(TpmLedger).order_by(TpmLedger.id)).all()
    assert (new.digest, new.identity, new.swtpm_version, new.libtpms_version) == (DIGEST, IDENTITY, "0.7.1", "0.9.2")
    assert old.keep_until
    assert abs((old.keep_until - before).total_seconds() - world.context.settings.tpm_quarantine_s) < 60


def test_rehearsal_leaves_everything_as_it_was(world: World, hand: Claim) -> None:
    """It runs the whole transaction before the pause; had it counted, the guest would belong to nobody."""
    view = world.view()
    before, events = everything(world), world.kinds()
    world.hand_over(hand, view).rehearse()
    assert (everything(world), world.kinds()) == (before, events)
    assert world.commit(hand, view)


def test_rehearsal_runs_what_the_hand_over_runs(world: World, hand: Claim) -> None:
    """Statement by statement, or the pause would have to compile what the rehearsal left out."""
    view, said = world.view(), list[str]()
    with world.context.database.write() as session:
        event.listen(session.get_bind(), "before_cursor_execute", lambda *call: said.append(call[2]))
    change = world.hand_over(hand, view)
    change.rehearse()
    rehearsed, said[:] = list(said), []
    assert change.commit(DIGEST)
    assert any("UPDATE migration" in each for each in rehearsed)
    assert [each for each in said if each not in rehearsed] == []


@pytest.mark.parametrize("change", ["epoch", "node", "state"])
def test_nothing_moves_when_it_is_not_the_targets_to_take(world: World, hand: Claim, change: str) -> None:
    view = world.view()
    if change == "epoch":
        world.change(Vm, epoch=7)
    elif change == "node":
        world.change(Vm, node_id=view.target.id)
    else:
        world.change(Migration, state="rolling_back")
    before, events = everything(world), world.kinds()
    assert not world.commit(hand, view)
    assert (everything(world), world.kinds()) == (before, events)


def test_definition_names_the_new_places(world: World, halves: Halves) -> None:
    """Another VM's volume has the name on the target: this one gets one beside it, and whatever names it follows."""
    _, hand = halves
    view = world.view()
    text = "scsi0: local:web/disk.qcow2,size=1G"
    definition = dataclasses.replace(view.definition, ignored={"[before]": text, "note": text})
    (disk,) = (each for each in view.transfers if each.device == "scsi0")
    moving = dataclasses.replace(disk, target_storage="fast", target_name="web/disk-1.qcow2")
    transfers = tuple(moving if each is disk else each for each in view.transfers)
    assert world.commit(hand, dataclasses.replace(view, definition=definition, transfers=transfers))
    after = VmDefinition.from_dict(world.vm().definition)
    assert [(each.storage, each.name) for each in after.volumes] == [
        ("fast", "web/disk-1.qcow2"), ("local", "web/ci.raw"), ("local", "web/tpm.raw"),
    ]  # fmt: skip
    assert after.ignored == {"[before]": "scsi0: fast:web/disk-1.qcow2,size=1G", "note": text}


def test_definition_is_not_written_when_nothing_has_another_name(world: World, halves: Halves) -> None:
    """Every byte of that statement is written with the guest paused."""
    _, hand = halves
    written: list[str] = []
    event.listen(world.context.database.engine, "before_cursor_execute", lambda *seen: written.append(str(seen[2])))
    assert world.commit(hand)
    assert [statement for statement in written if "UPDATE vm" in statement]
    assert not [statement for statement in written if "definition" in statement and "UPDATE vm" in statement]


def test_nothing_moves_when_a_part_fails(world: World, hand: Claim) -> None:
    """The ledger refuses an active copy without an identity: then volumes and epoch stay, too."""
    view = world.view()
    before = everything(world)
    with pytest.raises(IntegrityError):
        world.commit(hand, dataclasses.replace(view, tpm_identity=None))
    assert everything(world) == before
    assert world.commit(hand, view)


def test_second_commit_is_no_second_hand_over(world: World, hand: Claim) -> None:
    view = world.view()
    assert world.commit(hand, view)
    after = everything(world)
    assert not world.commit(hand, view)
    assert everything(world) == after
    assert world.kinds().count("handed_over") == 1


def test_view_says_that_it_was_handed_over(world: World, hand: Claim) -> None:
    """hand_over that is tried again must not ask for the guest again."""
    assert not world.view().handed_over
    world.commit(hand)
    view = world.view()
    assert view.handed_over
    assert (view.source.name, view.target.name) == ("alpha", "beta")
    assert {str(each.source_path) for each in view.transfers} == {
        f"/alpha/images/web/{name}" for name in ("disk.qcow2", "ci.raw", "tpm.raw")
    }


def test_vm_without_tpm_needs_no_ledger(world: World) -> None:
    with world.context.database.write() as session:
        session.delete(session.scalars(select(Volume).where(Volume.device == "tpmstate0")).one())
        session.delete(session.scalars(select(TpmLedger)).one())
    world.file()
    _, hand = world.switch_over()
    assert world.view().tpm is None
    assert world.commit(hand, digest=None)
    assert (world.vm().node.name, world.ledger()) == ("beta", [])


def test_promises_are_the_vms_own_after_the_resume(world: World, hand: Claim) -> None:
    view = world.view()
    take_memory(world.context, view.attempt_id, view.target, 1 << 28)
    take_port(world.context, view.attempt_id, view.target, "disks", avoid=frozenset())
    take_volume(world.context, view.attempt_id, view.source, Path("/alpha/x"))
    world.commit(hand)
    record_settled(world.context, view, state=VmState.RUNNING, downtime_ms=12.5)
    with world.context.database.read() as session:
        still = [row.path for row in session.scalars(select(Allocation).where(Allocation.freed_at.is_(None)))]
    assert still == ["/alpha/x"]
    assert (world.vm().state, world.migration().downtime_ms) == (VmState.RUNNING, 12.5)


def test_settled_is_said_once_and_kept(world: World, hand: Claim) -> None:
    """A retry that did not know would let run a guest that somebody has paused since."""
    world.commit(hand)
    assert not world.view().settled
    record_settled(world.context, world.view(), state=VmState.RUNNING)
    assert world.view().settled


def test_cancel_that_was_accepted_wins(world: World, hand: Claim) -> None:
    view = world.view()
    cancel_migration(world.context, view.migration_id)
    before = everything(world)
    assert not world.commit(hand, view)
    assert everything(world) == before


def test_guest_that_was_paused_stays_paused(world: World, hand: Claim) -> None:
    world.commit(hand)
    record_settled(world.context, world.view(), state=VmState.PAUSED)
    assert world.vm().state is VmState.PAUSED


def test_old_files_are_nobodys_after_the_hand_over(world: World, hand: Claim) -> None:
    """retire_source asks this before it removes anything."""
    view = world.view()
    disk = Path("/alpha/images/web/disk.qcow2")
    assert disk in paths_in_use(world.context, view.source.id)
    world.commit(hand)
    assert paths_in_use(world.context, view.source.id) == frozenset()
    assert Path("/beta/images/web/disk.qcow2") in paths_in_use(world.context, view.target.id)


def files_to_go(world: World, view: AttemptView) -> tuple[Path, ...]:
    turn_round(world.context, view)
    return tuple(old_files(world.context, view))


def test_replicas_at_the_new_home_go_and_are_found_again(world: World, halves: Halves) -> None:
    world.add_replica("beta", "web/disk.old")
    _, hand = halves
    view = world.view()
    world.commit(hand, view)
    expected = (Path("/beta/images/web/disk.old"),)
    assert files_to_go(world, view) == expected
    assert files_to_go(world, view) == expected, "a second try must find what the first did not free"
    assert world.count(Replica) == 0
    assert allocated_volumes(world.context, view.attempt_id, view.target) == expected


def test_replication_turns_round_with_the_vm(world: World, halves: Halves) -> None:
    world.add_replica("beta", "web/disk.old")
    _, hand = halves
    view = world.view()
    world.commit(hand, view)
    turn_round(world.context, view)
    with world.context.database.read() as session:
        (replication,) = session.scalars(select(Replication))
        assert (replication.target_id, replication.synced_at) == (view.source.id, None)
        assert replication.generation == 1, "no number comes twice: bitmaps are called by it"


def test_replication_that_never_brought_anything_does_not(world: World, halves: Halves) -> None:
    """A single sync that was refused is no wish to have a replica for ever."""
    _, hand = halves
    with world.context.unit() as unit:
        ends = {"vm_id": world.view().vm_id, "target_id": world.view().target.id}
        unit.session.add(Replication(**ends, created_at=now()))
    view = world.view()
    assert view.turn is None
    world.commit(hand, view)
    turn_round(world.context, view)
    with world.context.database.read() as session:
        (replication,) = session.scalars(select(Replication))
        assert (replication.target_id, replication.ended_at is None) == (view.target.id, False)


def test_replicas_elsewhere_stay(world: World, halves: Halves) -> None:
    _, hand = halves
    world.add_replica("alpha", "web/disk.old")
    world.commit(hand)
    assert files_to_go(world, world.view()) == ()
    assert world.count(Replica) == 1


def test_proof_is_kept(world: World, hand: Claim) -> None:
    tpm = world.view().tpm
    assert tpm
    record_proof(world.context, tpm.id, digest=DIGEST, identity_source=IDENTITY, identity_target=IDENTITY)
    with world.context.database.read() as session:
        row = session.get_one(VolumeTransfer, tpm.id)
    assert (row.digest_source, row.digest_target, row.identity_source) == (DIGEST, DIGEST, IDENTITY)


def test_one_active_copy_whatever_happens(world: World, hand: Claim) -> None:
    world.commit(hand)
    with pytest.raises(IntegrityError):
        world.change(TpmLedger, role=LedgerRole.ACTIVE, identity=IDENTITY)
    assert world.step(Phase.HAND_OVER).id == hand.step_id
    assert world.count(Step) == 11


def test_what_another_attempt_makes_is_not_freed(world: World) -> None:
    """A retirement that comes late meets a migration that has just put its volume where an old one was."""
    world.file()
    view, path = world.view(), Path("/beta/images/web/new.raw")
    take_volume(world.context, view.attempt_id, view.target, path)
    assert path in paths_in_use(world.context, view.target.id, attempt_id=view.attempt_id + 1)
    assert path not in paths_in_use(world.context, view.target.id, attempt_id=view.attempt_id)

"""The ledger of TPM states: what a copy is worth, step by step, safe to be told twice."""

from __future__ import annotations

from dataclasses import replace
from datetime import timedelta
from pathlib import Path

import pytest
from sqlalchemy import select

from haulier.clock import now
from haulier.services import ledger
from haulier.services.ledger import TpmCopy
from models import LedgerRole, Migration, MigrationState, TpmLedger
from models.transitions import IllegalMove
from tests.unit.services.world import IDENTITY, World

HERE = TpmCopy(1, 1, Path("/alpha/images/web/tpm.raw"))
THERE = TpmCopy(1, 2, Path("/beta/images/web/tpm.raw"))


def rows(world: World) -> list[TpmLedger]:
    with world.context.database.read() as session:
        return list(session.scalars(select(TpmLedger).order_by(TpmLedger.id)))


def quarantine(world: World, *, keep_s: float) -> int:
    with world.context.database.write() as session:
        ledger.move_copy(session, HERE, LedgerRole.QUARANTINED, keep_s=keep_s)
    return rows(world)[0].id


def surely_expired(world: World, node_id: int) -> list[tuple[int, Path]]:
    """What is found when it has been over for a while."""
    ledger.expired_copies(world.context, node_id)
    world.pass_steadily(3600)
    return ledger.expired_copies(world.context, node_id)


def test_reserving_twice_is_one_row(world: World) -> None:
    for _ in range(2):
        ledger.reserve_copy(world.context, THERE, epoch=1)
    assert world.ledger() == [("alpha", "active", 0), ("beta", "reserved", 1)]


def test_reservation_that_is_dropped_may_be_made_again(world: World) -> None:
    ledger.reserve_copy(world.context, THERE, epoch=1)
    for _ in range(2):
        ledger.drop_reserved(world.context, THERE)
    ledger.reserve_copy(world.context, THERE, epoch=2)
    assert [(role, epoch) for _, role, epoch in world.ledger()] == [("active", 0), ("destroyed", 1), ("reserved", 2)]


def test_first_start_records_the_vms_own_copy(world: World) -> None:
    other = TpmCopy(world.add_vm("db"), 1, Path("/alpha/images/other.raw"))
    with world.context.database.write() as session:
        session.delete(session.scalars(select(TpmLedger).where(TpmLedger.vm_id == other.vm_id)).one())
    assert ledger.recorded_identity(world.context, other.vm_id) is None
    ledger.record_active(world.context, other, epoch=0, identity=IDENTITY, digest="aa")
    assert ledger.recorded_identity(world.context, other.vm_id) == IDENTITY
    assert rows(world)[-1].role is LedgerRole.ACTIVE


def test_later_digest_leaves_the_identity(world: World) -> None:
    ledger.record_active(world.context, HERE, epoch=0, digest="bb")
    (row,) = rows(world)
    assert (row.digest, row.identity, row.role) == ("bb", IDENTITY, LedgerRole.ACTIVE)


def test_quarantined_copy_gives_no_identity(world: World) -> None:
    quarantine(world, keep_s=60)
    assert ledger.recorded_identity(world.context, 1) is None


def test_quarantine_ends_with_its_time(world: World) -> None:
    row_id = quarantine(world, keep_s=3600)
    assert surely_expired(world, 1) == []
    world.change(TpmLedger, keep_until=now() - timedelta(seconds=1))
    assert surely_expired(world, 1) == [(row_id, HERE.path)]
    assert surely_expired(world, 2) == []


def test_host_that_begins_with_a_wrong_clock_destroys_nothing(world: World) -> None:
    quarantine(world, keep_s=3600)
    in_time = rows(world)[0].keep_until
    world.change(TpmLedger, keep_until=now() - timedelta(days=1))
    for _ in range(9):
        assert ledger.expired_copies(world.context, 1) == []
        world.pass_steadily(60)
    world.change(TpmLedger, keep_until=in_time)
    assert ledger.expired_copies(world.context, 1) == []
    world.pass_steadily(60)
    world.change(TpmLedger, keep_until=now() - timedelta(days=1))
    assert ledger.expired_copies(world.context, 1) == []


def test_short_quarantine_is_not_made_much_longer(world: World) -> None:
    around = replace(world.context, settings=world.context.settings.model_copy(update={"tpm_quarantine_s": 5.0}))
    row_id = quarantine(world, keep_s=0)
    assert ledger.expired_copies(around, 1) == []
    world.pass_steadily(5)
    assert ledger.expired_copies(around, 1) == [(row_id, HERE.path)]


def test_quarantined_copy_is_found_at_its_new_place(world: World) -> None:
    quarantine(world, keep_s=0)
    away = Path("/alpha/quarantine/web")
    for _ in range(2):
        ledger.quarantine_path(world.context, HERE, away)
    assert [path for _, path in surely_expired(world, 1)] == [away]


def test_copy_that_is_still_being_put_away_is_not_destroyed(world: World) -> None:
    """The heartbeat looked between the row and the file, took the file for gone, and left it there for ever."""
    world.file()
    quarantine(world, keep_s=0)
    assert surely_expired(world, 1) == []
    world.change(Migration, state=MigrationState.DONE)
    assert [path for _, path in surely_expired(world, 1)] == [HERE.path]


def test_active_copy_does_not_change_its_place(world: World) -> None:
    ledger.quarantine_path(world.context, HERE, Path("/alpha/quarantine/web"))
    assert rows(world)[0].path == str(HERE.path)


def test_destroyed_once(world: World) -> None:
    row_id = quarantine(world, keep_s=0)
    for _ in range(2):
        ledger.record_destroyed(world.context, row_id)
    assert rows(world)[0].role is LedgerRole.DESTROYED
    assert world.kinds("tpm.") == ["destroyed"]
    assert ledger.expired_copies(world.context, 1) == []


def test_quarantined_copy_never_comes_back(world: World) -> None:
    quarantine(world, keep_s=0)
    with pytest.raises(IllegalMove), world.context.database.write() as session:
        ledger.move_copy(session, HERE, LedgerRole.ACTIVE)
    assert rows(world)[0].role is LedgerRole.QUARANTINED


def test_moving_what_was_never_recorded_does_nothing(world: World) -> None:
    with world.context.database.write() as session:
        ledger.move_copy(session, THERE, LedgerRole.QUARANTINED)
    assert world.ledger() == [("alpha", "active", 0)]

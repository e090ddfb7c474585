"""The TPM's state: never blank under a VM that has one, never another's, kept for its time after a hand-over."""

from __future__ import annotations

from datetime import timedelta
from pathlib import Path

import pytest
from sqlalchemy import update

from haulier.clock import now
from models import TpmLedger
from tests.acceptance.guest import Guest
from tests.acceptance.invariant import assert_all_is_well
from tests.acceptance.stack import Stack
from tests.acceptance.waiting import wait_until


def test_start_on_a_blank_state_is_refused(stack: Stack, guest: Guest) -> None:
    """swtpm would quietly make another TPM there."""
    guest.stop()
    path = guest.volumes()["tpmstate0"]
    state = path.read_bytes()
    for content, code in (
        (bytes(len(state)), "tpm_state_blank"),
        (b"", "tpm_state_blank"),
        (b"x" * 4096, "tpm_state_broken"),
    ):
        path.write_bytes(content)
        answer = stack.haulier("vm", "start", guest.name)
        assert answer.document["code"] == code, answer
        assert answer.status == (2 if code == "tpm_state_blank" else answer.status)
        assert path.read_bytes() == content
        assert guest.row()["state"] == "stopped"
    path.write_bytes(state)
    guest.start()
    assert_all_is_well(stack, guest)


def test_start_on_another_vms_state_is_refused(stack: Stack, make_two: tuple[Guest, Guest]) -> None:
    one, other = make_two
    mine, its = one.volumes()["tpmstate0"], other.volumes()["tpmstate0"]
    state = mine.read_bytes()
    mine.write_bytes(its.read_bytes())
    answer = stack.haulier("vm", "start", one.name)
    assert (answer.status, answer.document["code"]) == (2, "tpm_identity_differs")
    mine.write_bytes(state)
    assert_all_is_well(stack)


@pytest.fixture
def make_two(guest: Guest, make_guest: object) -> tuple[Guest, Guest]:
    """Two VMs that have run once and are stopped."""
    assert callable(make_guest)
    other: Guest = make_guest()
    guest.stop()
    other.stop()
    return guest, other


class TestQuarantine:
    KEPT_S = 15.0

    @pytest.fixture
    def settings(self) -> dict[str, str]:
        return {"HAULIER_TPM_QUARANTINE_S": str(self.KEPT_S)}

    def test_old_state_is_kept_for_its_time_and_then_destroyed(self, stack: Stack, guest: Guest) -> None:
        before = guest.volumes()["tpmstate0"]
        began = now()
        guest.move("beta")
        assert not before.exists()
        (row,) = stack.table("tpm_ledger", role="quarantined", vm_id=guest.row()["id"])
        assert began < row["keep_until"] - timedelta(seconds=self.KEPT_S) < now()
        kept = Path(row["path"])
        assert kept.parent == stack.state / "nodes" / "alpha" / "quarantine"
        assert kept.stat().st_mode & 0o777 == 0o600
        assert_all_is_well(stack, guest)
        with stack.database.write() as session:
            session.execute(update(TpmLedger).where(TpmLedger.id == row["id"]).values(keep_until=now()))
        wait_until("the old state is destroyed", lambda: not kept.exists())
        wait_until("the ledger knows", lambda: stack.table("tpm_ledger", id=row["id"], role="destroyed"))
        assert_all_is_well(stack, guest)

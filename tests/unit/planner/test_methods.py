"""The method table: every role in every situation has a method or a refusal, and a TPM's state only ever one method."""

from __future__ import annotations

import dataclasses
from itertools import product

import pytest
from hypothesis import given
from hypothesis import strategies as st

from haulier.definition import Role
from haulier.definition.storage import KINDS, StorageKind
from haulier.planner.methods import TABLE, Method, Situation, VolumeFacts, choose_method, choose_sync_method

FACTS = st.builds(
    VolumeFacts,
    device=st.from_regex(r"[a-z]{2,8}[0-9]{1,2}", fullmatch=True),
    role=st.sampled_from(Role),
    shared=st.booleans(),
    replica_on_target=st.booleans(),
    offline=st.booleans(),
    snapshot_only=st.booleans(),
)
COPIED = (Role.CLOUDINIT, Role.UNUSED, Role.VMSTATE)


@given(FACTS)
def test_tpmstate_only_ever_crosses_by_tpm_sync(facts: VolumeFacts) -> None:
    choice = choose_method(facts)
    allowed = {Method.TPM_SYNC, Method.NONE} if facts.role is Role.TPMSTATE else set(Method) - {Method.TPM_SYNC}
    assert choice.method in allowed
    if facts.role is Role.TPMSTATE and choice.method is Method.NONE:
        assert choice.refusal


@given(FACTS)
def test_every_volume_has_a_method_or_a_refusal_that_tells_everything(facts: VolumeFacts) -> None:
    choice = choose_method(facts)
    assert (choice.device, choice.role) == (facts.device, facts.role)
    assert choice.reason
    if choice.refusal:
        assert choice.method is Method.NONE
        assert choice.refusal.code
        assert choice.refusal.hint
        assert choice.refusal.message == choice.reason


def test_every_cell_is_there() -> None:
    """A hole in the table would be a KeyError in the middle of a request."""
    assert set(TABLE) == set(product(Role, Situation))


def test_no_tpm_cell_but_tpm_sync() -> None:
    methods = {cell.method for (role, _), cell in TABLE.items() if role is Role.TPMSTATE and not cell.code}
    assert methods == {Method.TPM_SYNC}
    assert Method.TPM_SYNC not in {cell.method for (role, _), cell in TABLE.items() if role is not Role.TPMSTATE}


def test_nothing_of_a_vm_that_does_not_run_is_mirrored() -> None:
    """No QEMU has it open."""
    offline = (Situation.LOCAL_OFFLINE, Situation.REPLICATED_OFFLINE)
    methods = {cell.method for (_, situation), cell in TABLE.items() if situation in offline}
    assert methods == {Method.COPY, Method.DELTA, Method.TPM_SYNC, Method.NONE}


@pytest.mark.parametrize(
    ("role", "method", "with_replica"),
    [
        *((role, Method.MIRROR, Method.DELTA) for role in (Role.DISK, Role.EFIDISK)),
        *((role, Method.COPY, Method.COPY) for role in COPIED),
        (Role.TPMSTATE, Method.TPM_SYNC, Method.TPM_SYNC),
    ],
)
@pytest.mark.parametrize("replica", [False, True])
def test_method_of_a_local_volume(role: Role, method: Method, with_replica: Method, *, replica: bool) -> None:
    choice = choose_method(VolumeFacts("dev0", role, replica_on_target=replica))
    assert choice.method is (with_replica if replica else method)
    assert choice.refusal is None


@pytest.mark.parametrize(
    ("facts", "code"),
    [
        (VolumeFacts("before.scsi0", Role.DISK, snapshot_only=True), "snapshot_only"),
        (VolumeFacts("ide2", Role.CDROM), "cdrom_local"),
        (VolumeFacts("ide2", Role.CDROM, replica_on_target=True), "cdrom_local"),
    ],
)
def test_refused_volume(facts: VolumeFacts, code: str) -> None:
    refusal = choose_method(facts).refusal
    assert refusal
    assert refusal.code == code


@pytest.mark.parametrize("role", Role)
def test_nothing_of_a_shared_volume_crosses(role: Role) -> None:
    """Of a TPM's state neither, but its swtpms have an order."""
    choice = choose_method(VolumeFacts("dev0", role, shared=True))
    assert choice.method is (Method.TPM_SYNC if role is Role.TPMSTATE else Method.NONE)
    assert choice.refusal is None


def test_saved_ram_of_a_snapshot_is_copied() -> None:
    assert choose_method(VolumeFacts("before.vmstate", Role.VMSTATE, snapshot_only=True)).method is Method.COPY


def test_replica_changes_the_reason_of_a_disk() -> None:
    whole, beside = (choose_method(VolumeFacts("scsi0", Role.DISK, replica_on_target=each)) for each in (False, True))
    assert whole.reason != beside.reason


@pytest.mark.parametrize(
    ("facts", "method"),
    [
        (VolumeFacts("virtio0", Role.DISK), Method.DELTA),
        (VolumeFacts("efidisk0", Role.EFIDISK), Method.DELTA),
        (VolumeFacts("tpmstate0", Role.TPMSTATE), Method.TPM_SYNC),
        (VolumeFacts("ide2", Role.CLOUDINIT), Method.COPY),
        (VolumeFacts("unused0", Role.UNUSED), Method.COPY),
        (VolumeFacts("before.vmstate", Role.VMSTATE), Method.COPY),
        (VolumeFacts("before.scsi0", Role.DISK, snapshot_only=True), Method.COPY),
        (VolumeFacts("ide2", Role.CDROM), None),
        (VolumeFacts("virtio0", Role.DISK, shared=True), None),
        (VolumeFacts("tpmstate0", Role.TPMSTATE, shared=True), None),
    ],
)
def test_how_a_volume_reaches_its_replica(facts: VolumeFacts, method: Method | None) -> None:
    choice = choose_sync_method(facts)
    assert (choice and choice.method) == method


@pytest.mark.parametrize("role", list(Role))
@pytest.mark.parametrize("offline", [False, True])
def test_format_that_the_target_cannot_hold(role: Role, *, offline: bool) -> None:
    """It is said, with the reason why it crosses as it does; nothing else changes."""
    facts = VolumeFacts("x", role, offline=offline, format="qcow2")
    kept, changed = (dataclasses.replace(facts, target_kind=kind) for kind in (StorageKind.MOUNT, StorageKind.LVM))
    assert (kept.target_format, changed.target_format) == ("qcow2", "raw")
    before, after = choose_method(kept), choose_method(changed)
    assert (before.method, before.refusal) == (after.method, after.refusal)
    assert ("it becomes raw" in after.reason) is (after.method is not Method.NONE)
    assert "becomes" not in before.reason


@pytest.mark.parametrize("kind", list(StorageKind))
def test_replica_is_made_of_files(kind: StorageKind) -> None:
    choice = choose_sync_method(VolumeFacts("scsi0", Role.DISK, target_kind=kind))
    assert choice
    assert (choice.refusal is None) is KINDS[kind].has_files

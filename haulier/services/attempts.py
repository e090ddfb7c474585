"""What a phase needs to know about its attempt, in plain frozen values, and what it writes down while it works."""

from __future__ import annotations

import random
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from sqlalchemy import select, update
from sqlalchemy.exc import IntegrityError
from sqlalchemy.orm import Session

from haulier.clock import now
from haulier.definition import VmDefinition
from haulier.errors import Refused, StepFailed
from haulier.services.chain import Claim
from haulier.services.context import Context
from models import (
    Allocation,
    AllocationKind,
    Attempt,
    Base,
    MigrationState,
    Node,
    Phase,
    Replica,
    Side,
    Step,
    StepState,
    Storage,
    TpmLedger,
    TransferMethod,
    VmState,
    Volume,
    VolumeRole,
    VolumeTransfer,
)
from models.enums import LedgerRole

# How often another port is tried when the first is taken by somebody outside Haulier.
_PORT_TRIES = 40
_STEP = Base.metadata.tables["step"]


@dataclass(frozen=True, slots=True)
class NodeView:
    """One side of the migration."""

    id: int
    name: str
    address: str
    ports: tuple[int, int]
    network: str
    facts: dict[str, Any]


@dataclass(frozen=True, slots=True)
class TransferView:
    """One volume on its way.

    Paths are those of the two nodes' own file systems, each in the folder of its storage there; `size_bytes` is the
    guest-visible size.
    """

    id: int
    volume_id: int
    device: str
    role: VolumeRole
    method: TransferMethod
    format: str
    size_bytes: int
    source_storage: str
    source_name: str
    source_folder: Path
    source_path: Path
    target_folder: Path
    target_path: Path
    target_storage: str
    target_storage_id: int
    target_name: str
    target_shared: bool
    digest_source: str | None

    @property
    def export(self) -> str:
        """By what name the target's carrier serves it; a device of a snapshot may be longer than QEMU takes."""
        return f"volume{self.volume_id}"


@dataclass(frozen=True, slots=True)
class AttemptView:
    """An attempt as a phase sees it; `notes` are what earlier steps wrote down for it, by phase and side.

    `offline`: the VM does not run, and nothing starts it before the attempt is over.
    `settled`: after the hand-over the guest was let run, or left as it was; whoever pauses it from now on wants that.
    `stall_s`: how long a phase may show no progress; 0 is for ever.
    """

    attempt_id: int
    migration_id: int
    number: int
    vm_id: int
    vm: str
    vm_state: VmState
    epoch: int
    definition: VmDefinition
    pinned: dict[str, Any]
    source: NodeView
    target: NodeView
    transfers: tuple[TransferView, ...]
    tpm_identity: str | None
    offline: bool
    handed_over: bool
    settled: bool
    stall_s: float
    notes: Mapping[tuple[Phase, Side], dict[str, Any]] = field(default_factory=dict)

    @property
    def key(self) -> str:
        """The name from which both nodes derive this attempt's key."""
        return f"{self.migration_id}-{self.number}"

    def by_method(self, *methods: TransferMethod) -> tuple[TransferView, ...]:
        """The volumes that cross by one of these methods."""
        return tuple(transfer for transfer in self.transfers if transfer.method in methods)

    def file_bytes(self, volume: TransferView) -> int:
        """How long the file is of a volume that crosses as a copy: what the source saw in `check`."""
        found: int = self.notes[Phase.CHECK, Side.SOURCE]["file_bytes"][volume.device]
        return found

    @property
    def tpm(self) -> TransferView | None:
        """The TPM's state volume, if the VM has one."""
        return next(iter(self.by_method(TransferMethod.TPM_SYNC)), None)


@dataclass(frozen=True, slots=True)
class SourceNote:
    """The source's word in the pause: the TPM's last digest, whether the guest ran, and when it was paused."""

    digest: str | None
    was_running: bool
    paused_at: float | None


def load_view(context: Context, attempt_id: int) -> AttemptView:
    """Read an attempt with everything that hangs on it."""
    with context.database.read() as session:
        attempt = session.get_one(Attempt, attempt_id)
        migration = attempt.migration
        vm = migration.vm
        identity = session.scalar(
            select(TpmLedger.identity).where(TpmLedger.vm_id == vm.id, TpmLedger.role == LedgerRole.ACTIVE)
        )
        return AttemptView(
            attempt_id=attempt.id,
            migration_id=migration.id,
            number=attempt.number,
            vm_id=vm.id,
            vm=vm.name,
            vm_state=vm.state,
            epoch=migration.epoch,
            definition=VmDefinition.from_dict(vm.definition),
            pinned=vm.pinned,
            source=_node(migration.source),
            target=_node(migration.target),
            transfers=tuple(_transfer(transfer) for transfer in attempt.transfers),
            tpm_identity=identity,
            offline=migration.offline,
            handed_over=migration.state is MigrationState.HANDED_OVER,
            settled=any(step.notes.get("settled", False) for step in attempt.steps),
            stall_s=migration.stall_s,
            notes={(step.phase, step.side): step.notes for step in attempt.steps},
        )


def _node(node: Node) -> NodeView:
    return NodeView(node.id, node.name, node.address, (node.port_first, node.port_last), node.network, node.facts)


def _transfer(transfer: VolumeTransfer) -> TransferView:
    volume = transfer.volume
    return TransferView(
        id=transfer.id,
        volume_id=volume.id,
        device=volume.device,
        role=transfer.role,
        method=transfer.method,
        format=volume.format,
        size_bytes=volume.size_bytes or 0,
        source_storage=transfer.source_storage.name,
        source_name=transfer.source_name,
        source_folder=Path(transfer.source_storage.path),
        source_path=Path(transfer.source_storage.path) / transfer.source_name,
        target_folder=Path(transfer.target_storage.path),
        target_path=Path(transfer.target_storage.path) / transfer.target_name,
        target_storage=transfer.target_storage.name,
        target_storage_id=transfer.target_storage_id,
        target_name=transfer.target_name,
        target_shared=transfer.target_storage.shared,
        digest_source=transfer.digest_source,
    )


def note_on_step(context: Context, held: Claim, **notes: object) -> None:
    """Write something down on the step before its end, so that an undo or a later phase finds it."""
    with context.database.write() as session:
        step = session.get_one(Step, held.step_id)
        step.notes = {**step.notes, **notes}


def update_transfer(context: Context, transfer_id: int, **values: object) -> None:
    """Write down how far a volume is, or what was found out about it."""
    with context.database.write() as session:
        session.execute(update(VolumeTransfer).where(VolumeTransfer.id == transfer_id).values(**values))


def note_source_done(context: Context, held: Claim, notes: dict[str, Any], marks: dict[str, float]) -> bool:
    """Write down, in the pause, that the source's QEMU has seen the load: what the target waits for. One statement.

    False if the claim no longer counts; then the target must never see this note, and does not.
    """
    still_ours = (_STEP.c.id == held.step_id, _STEP.c.fence == held.fence, _STEP.c.state == StepState.RUNNING)
    with context.database.write() as session:
        # Below the ORM, like all that is done in the pause.
        noted = session.connection().execute(update(_STEP).where(*still_ours).values(notes=notes, marks=marks))
    context.signals.ring(f"attempt.{held.attempt_id}")
    return noted.rowcount == 1


def source_note(context: Context, attempt_id: int) -> SourceNote | None:
    """What the source noted in the pause, or None as long as it has not."""
    with context.database.read() as session:
        of_the_source = (_STEP.c.attempt_id == attempt_id, _STEP.c.phase == Phase.MOVE_MEMORY)
        row = session.connection().execute(select(_STEP.c.notes, _STEP.c.marks).where(*of_the_source)).one()
        if "digest" not in row.notes:
            return None
        return SourceNote(row.notes["digest"], bool(row.notes["was_running"]), row.marks.get("paused"))


def take_volume(context: Context, attempt_id: int, node: NodeView, path: Path) -> None:
    """Write down that a file is about to be made here for this attempt. Safe to call twice."""
    with context.database.write() as session:
        if not _open_allocation(session, attempt_id, AllocationKind.VOLUME, str(path)):
            session.add(
                Allocation(
                    attempt_id=attempt_id,
                    node_id=node.id,
                    kind=AllocationKind.VOLUME,
                    purpose="target volume",
                    path=str(path),
                    taken_at=now(),
                )
            )


def take_memory(context: Context, attempt_id: int, node: NodeView, ram_bytes: int) -> None:
    """Write down that the guest's RAM is promised to this attempt. Safe to call twice."""
    with context.database.write() as session:
        if not _open_allocation(session, attempt_id, AllocationKind.MEMORY, None):
            session.add(
                Allocation(
                    attempt_id=attempt_id,
                    node_id=node.id,
                    kind=AllocationKind.MEMORY,
                    purpose="guest RAM",
                    bytes=ram_bytes,
                    taken_at=now(),
                )
            )


def _open_allocation(session: Session, attempt_id: int, kind: AllocationKind, path: str | None) -> bool:
    wanted = select(Allocation.id).where(
        Allocation.attempt_id == attempt_id,
        Allocation.kind == kind,
        Allocation.path == path if path is not None else Allocation.path.is_(None),
        Allocation.freed_at.is_(None),
    )
    return session.scalar(wanted) is not None


def allocated_volumes(context: Context, attempt_id: int, node: NodeView) -> tuple[Path, ...]:
    """The files that this attempt made, or was about to make, on a node and has not given back."""
    with context.database.read() as session:
        paths = session.scalars(
            select(Allocation.path).where(
                Allocation.attempt_id == attempt_id,
                Allocation.node_id == node.id,
                Allocation.kind == AllocationKind.VOLUME,
                Allocation.freed_at.is_(None),
            )
        )
        return tuple(Path(path) for path in paths if path)


def paths_in_use(context: Context, node_id: int) -> frozenset[Path]:
    """Every file of a node that is some VM's volume or a replica now: nothing that frees may touch one of them."""
    kinds = (select(Storage.path, kind.name).join(kind).where(Storage.node_id == node_id) for kind in (Volume, Replica))
    with context.database.read() as session:
        return frozenset(Path(folder) / name for query in kinds for folder, name in session.execute(query))


def storage_folders(context: Context, node_id: int) -> tuple[Path, ...]:
    """The folders of a node's storages: an allocation's row names a file and not the storage it lies on."""
    with context.database.read() as session:
        return tuple(Path(path) for path in session.scalars(select(Storage.path).where(Storage.node_id == node_id)))


def take_port(context: Context, attempt_id: int, node: NodeView, purpose: str, *, avoid: frozenset[int]) -> int:
    """Promise a port of the node's range to this attempt. No two open promises have the same address and port.

    Where in the range the search begins is left to chance, so that other programs of the host are met rarely. Raises
    Refused
    `no_port` when the range is used up.
    """
    first, last = node.ports
    with context.database.read() as session:
        promised = session.scalars(
            select(Allocation.port).where(Allocation.address == node.address, Allocation.freed_at.is_(None))
        ).all()
    ports = list(set(range(first, last + 1)) - avoid - set(promised))
    random.shuffle(ports)
    # Somebody else may take one between the look and the row; then the next one is tried.
    for port in ports[:_PORT_TRIES]:
        try:
            with context.database.write() as session:
                session.add(
                    Allocation(
                        attempt_id=attempt_id,
                        node_id=node.id,
                        kind=AllocationKind.PORT,
                        purpose=purpose,
                        address=node.address,
                        port=port,
                        taken_at=now(),
                    )
                )
        except IntegrityError:
            continue
        return port
    raise Refused("no_port", f"no port of {first}-{last} is free on {node.name}", "Widen HAULIER_PORTS on that node.")


def free_allocations(
    context: Context,
    attempt_id: int,
    *,
    kind: AllocationKind | None = None,
    purpose: str | None = None,
    path: Path | None = None,
) -> None:
    """Write down that what the attempt had taken is given back; without a filter all of it. Safe to call twice."""
    wanted = [Allocation.attempt_id == attempt_id, Allocation.freed_at.is_(None)]
    if kind is not None:
        wanted.append(Allocation.kind == kind)
    if purpose is not None:
        wanted.append(Allocation.purpose == purpose)
    if path is not None:
        wanted.append(Allocation.path == str(path))
    with context.database.write() as session:
        session.execute(update(Allocation).where(*wanted).values(freed_at=now()))


def require_tpm_transfer(view: AttemptView) -> TransferView:
    """The TPM's volume of an attempt that must have one."""
    if view.tpm is None:
        raise StepFailed("tpm_missing", f"VM {view.vm} has no TPM volume in this migration", "This is a defect.")
    return view.tpm

"""What is being done:
migrations, their attempts and steps, the crossing of each volume, and plain operations on one VM.
"""

from __future__ import annotations

from datetime import datetime
from typing import Any

from sqlalchemy import CheckConstraint, ForeignKey, ForeignKeyConstraint, Index, UniqueConstraint, and_, false, text
from sqlalchemy.orm import Mapped, mapped_column, relationship

from models.base import Base, Key, only_where, word
from models.enums import (
    AllocationKind,
    BatchState,
    Gate,
    LimitScope,
    MigrationState,
    OperationKind,
    OperationState,
    StepState,
    TransferMethod,
    VolumeRole,
)
from models.inventory import Node, Replication, Storage, Vm, Volume
from models.phases import Phase, Side
from models.transitions import AT_WORK, OPEN_MIGRATION


def _state_in(states: tuple[MigrationState, ...]) -> str:
    return "state IN ({})".format(", ".join(f"'{state}'" for state in states))


# As the indexes have them: a value that is bound later would keep SQLite from using those.
IS_AT_WORK = text("migration." + _state_in(AT_WORK))
WAITS = text("migration.state = 'queued'")
_WAITS = text("state = 'queued'")
_HELD = text("freed_at IS NULL")


class Migration(Base):
    """One wish to have a VM on another node. Its state is the decision who may run the guest (see
    models/transitions.py).

    One of a `replication` is a sync: it brings a new generation of the volumes there and no guest; `handed_over` says
    of it that the generation is the replica's.

    One that is `queued` waits until the limits leave room for it, and nobody works on its VM; it has no attempt then.
    Its `rank` is its place in the queue (haulier/planner/admission.py), in seconds: the lowest goes first.

    `label` is a word of whoever filed it, by which it may be held (`QueueLabel`).

    One of a `batch` begins only while that is open, and after those of it that `MigrationAfter` names. `target_auto`:
    its target was chosen by Haulier. `deadline` is when it should be done, for people;
    `planned_bytes` what was to cross when it was filed, RAM included.

    `needs_operator` stops it where it is, on the way forward or back, without touching that decision.
    `epoch` is the VM's when the migration was begun: the hand-over counts it up, and only if it is still the same.
    `storage_map` names the target's storage for one of the source's, where it is not the one of the same name.
    It is begun `tries` times at most, after a failure not before `not_before`.
    `timeout_s` is how long a try may take before the hand-over, `stall_s` how long a phase may show no progress; 0
    is no limit. With `may_pause` a guest that does not settle stands still for as long as the rest of its RAM takes.
    """

    __tablename__ = "migration"
    __table_args__ = (
        CheckConstraint("source_id <> target_id", name="two_nodes"),
        CheckConstraint("tries > 0", name="tries"),
        only_where("uq_migration_one_at_work", "vm_id", where=_state_in(AT_WORK)),
        # One that waits does not keep syncs of its VM away.
        only_where("uq_migration_one_wish", "vm_id", where=f"replication_id IS NULL AND {_state_in(OPEN_MIGRATION)}"),
        Index("ix_migration_queue", "rank", "id", sqlite_where=_WAITS, postgresql_where=_WAITS),
        # A key is derived from the number, so no number may come back.
        {"sqlite_autoincrement": True},
    )

    id: Mapped[int] = mapped_column(Key, primary_key=True)
    vm_id: Mapped[int] = mapped_column(ForeignKey("vm.id"))
    source_id: Mapped[int] = mapped_column(ForeignKey("node.id"))
    target_id: Mapped[int] = mapped_column(ForeignKey("node.id"))
    state: Mapped[MigrationState] = mapped_column(word(MigrationState), default=MigrationState.QUEUED)
    offline: Mapped[bool] = mapped_column(default=False)
    priority: Mapped[int] = mapped_column(default=50)
    label: Mapped[str | None]
    rank: Mapped[float] = mapped_column(default=0.0, server_default=text("0"))
    epoch: Mapped[int]
    cancel_asked: Mapped[bool] = mapped_column(default=False)
    needs_operator: Mapped[bool] = mapped_column(default=False)
    problems: Mapped[list[Any]] = mapped_column(default=list)
    downtime_ms: Mapped[float | None]
    tries: Mapped[int] = mapped_column(default=1, server_default=text("1"))
    not_before: Mapped[datetime | None]
    timeout_s: Mapped[float] = mapped_column(default=0.0, server_default=text("0"))
    stall_s: Mapped[float] = mapped_column(default=0.0, server_default=text("0"))
    may_pause: Mapped[bool] = mapped_column(default=False, server_default=false())
    storage_map: Mapped[dict[str, Any] | None]
    replication_id: Mapped[int | None] = mapped_column(ForeignKey("replication.id"))
    batch_id: Mapped[int | None] = mapped_column(ForeignKey("batch.id"), index=True)
    planned_bytes: Mapped[int] = mapped_column(default=0, server_default=text("0"))
    target_auto: Mapped[bool] = mapped_column(default=False, server_default=false())
    deadline: Mapped[datetime | None]
    created_at: Mapped[datetime]
    started_at: Mapped[datetime | None]
    finished_at: Mapped[datetime | None]

    vm: Mapped[Vm] = relationship()
    batch: Mapped[Batch | None] = relationship()
    replication: Mapped[Replication | None] = relationship()
    source: Mapped[Node] = relationship(foreign_keys=[source_id])
    target: Mapped[Node] = relationship(foreign_keys=[target_id])
    attempts: Mapped[list[Attempt]] = relationship(back_populates="migration", order_by="Attempt.number")


class Batch(Base):
    """Migrations that were filed together. `key` is what it is known by to whoever files it: once is enough.

    It stops when `stop_after` of its migrations have failed beside those that are `forgiven`; None is never. The moves
    of an evacuation are a batch, and those `homeward`, that bring its VMs back, are another.
    """

    __tablename__ = "batch"
    __table_args__ = (CheckConstraint("stop_after > 0", name="stop_after"),)

    id: Mapped[int] = mapped_column(Key, primary_key=True)
    key: Mapped[str] = mapped_column(unique=True)
    name: Mapped[str | None]
    state: Mapped[BatchState] = mapped_column(word(BatchState), default=BatchState.OPEN)
    stop_after: Mapped[int | None]
    forgiven: Mapped[int] = mapped_column(default=0)
    evacuation_id: Mapped[int | None] = mapped_column(ForeignKey("evacuation.id"), index=True)
    homeward: Mapped[bool] = mapped_column(default=False, server_default=false())
    created_at: Mapped[datetime]


class MigrationAfter(Base):
    """A migration that is begun only when another one of its batch is done."""

    __tablename__ = "migration_after"
    __table_args__ = (CheckConstraint("migration_id <> after_id", name="two"),)

    migration_id: Mapped[int] = mapped_column(ForeignKey("migration.id"), primary_key=True)
    after_id: Mapped[int] = mapped_column(ForeignKey("migration.id"), primary_key=True, index=True)


class QueueLimit(Base):
    """How many migrations may be past a gate at once, where it is not the usual number of the settings; 0 is a pause.
    Of bandwidth, how many bytes per second may cross.

    `node_id` is the node of the scopes `out` and `in`; of a pair it is the source, and `peer_id` the target.
    """

    __tablename__ = "queue_limit"
    __table_args__ = (
        CheckConstraint("allowed >= 0", name="allowed"),
        # Nothing that crosses could be told to use nothing.
        CheckConstraint("gate <> 'bandwidth' OR allowed > 0", name="some_bandwidth"),
        CheckConstraint("(scope = 'cluster') = (node_id IS NULL)", name="scope_has_node"),
        CheckConstraint("(scope = 'pair') = (peer_id IS NOT NULL)", name="pair_has_peer"),
        only_where("uq_queue_limit_cluster", "gate", where="scope = 'cluster'"),
        only_where("uq_queue_limit_node", "gate", "scope", "node_id", where="scope IN ('out', 'in')"),
        only_where("uq_queue_limit_pair", "gate", "node_id", "peer_id", where="scope = 'pair'"),
    )

    id: Mapped[int] = mapped_column(Key, primary_key=True)
    gate: Mapped[Gate] = mapped_column(word(Gate))
    scope: Mapped[LimitScope] = mapped_column(word(LimitScope))
    node_id: Mapped[int | None] = mapped_column(ForeignKey("node.id"))
    peer_id: Mapped[int | None] = mapped_column(ForeignKey("node.id"))
    allowed: Mapped[int]


class QueueLabel(Base):
    """A label by which migrations are held: none with it begins while it is `paused`, and at most `allowed` in any
    `period_s`. One that says nothing has no row.
    """

    __tablename__ = "queue_label"
    __table_args__ = (
        CheckConstraint("allowed > 0 AND period_s > 0", name="rate"),
        CheckConstraint("(allowed IS NULL) = (period_s IS NULL)", name="rate_is_whole"),
        CheckConstraint("paused OR allowed IS NOT NULL", name="says_something"),
    )

    label: Mapped[str] = mapped_column(primary_key=True)
    paused: Mapped[bool]
    allowed: Mapped[int | None]
    period_s: Mapped[int | None]


class Attempt(Base):
    """One try of a migration, from `check` to its end;
    a migration that is tried again keeps the rows of the earlier tries.

    `problem` is the first reason why it failed, `target_id` where it was to go.
    One that is prepared is `at_gate_since` then; its guest's RAM is moved from `moving_at` to `moved_at`.
    """

    __tablename__ = "attempt"
    __table_args__ = (
        UniqueConstraint("migration_id", "number"),
        only_where("uq_attempt_one_open", "migration_id", where="finished_at IS NULL"),
    )

    id: Mapped[int] = mapped_column(Key, primary_key=True)
    migration_id: Mapped[int] = mapped_column(ForeignKey("migration.id"))
    number: Mapped[int]
    started_at: Mapped[datetime] = mapped_column(index=True)
    target_id: Mapped[int | None] = mapped_column(ForeignKey("node.id"))
    problem: Mapped[dict[str, Any] | None]
    at_gate_since: Mapped[datetime | None]
    moving_at: Mapped[datetime | None]
    moved_at: Mapped[datetime | None]
    finished_at: Mapped[datetime | None]

    migration: Mapped[Migration] = relationship(back_populates="attempts")
    target: Mapped[Node | None] = relationship()
    steps: Mapped[list[Step]] = relationship(back_populates="attempt", order_by="Step.position")
    transfers: Mapped[list[VolumeTransfer]] = relationship(back_populates="attempt", order_by="VolumeTransfer.id")
    allocations: Mapped[list[Allocation]] = relationship(back_populates="attempt", order_by="Allocation.id")


# It is prepared, and waits before its guest's RAM is moved.
IS_AT_GATE = and_(Attempt.finished_at.is_(None), Attempt.at_gate_since.is_not(None), Attempt.moving_at.is_(None))


class Step(Base):
    """One phase of one attempt on one side. The row is the truth about it; messages only make somebody look.

    `fence` grows with every claim: a result is taken only under the number of the newest. `marks` are moments inside
    the pause in seconds since 1970 (the clock of the step's node), `progress` is for people, `notes` is for later
    phases.
    """

    __tablename__ = "step"
    __table_args__ = (
        UniqueConstraint("attempt_id", "phase", "side"),
        Index("ix_step_open", "state", "lease_until"),
    )

    id: Mapped[int] = mapped_column(Key, primary_key=True)
    attempt_id: Mapped[int] = mapped_column(ForeignKey("attempt.id"))
    position: Mapped[int]
    phase: Mapped[Phase] = mapped_column(word(Phase))
    side: Mapped[Side] = mapped_column(word(Side))
    queue: Mapped[str]
    state: Mapped[StepState] = mapped_column(word(StepState), default=StepState.WAITING)
    ready_at: Mapped[datetime | None]
    fence: Mapped[int] = mapped_column(default=0)
    worker: Mapped[str | None]
    lease_s: Mapped[float | None]
    lease_until: Mapped[datetime | None]
    started_at: Mapped[datetime | None]
    finished_at: Mapped[datetime | None]
    undone_at: Mapped[datetime | None]
    marks: Mapped[dict[str, Any]] = mapped_column(default=dict)
    notes: Mapped[dict[str, Any]] = mapped_column(default=dict)
    progress: Mapped[dict[str, Any]] = mapped_column(default=dict)
    problem: Mapped[dict[str, Any] | None]

    attempt: Mapped[Attempt] = relationship(back_populates="steps")
    bandwidth: Mapped[BandwidthShare | None] = relationship(viewonly=True)


class BandwidthShare(Base):
    """What a step that carries bytes may use of the budgets that it crosses, and what its tools may be using still.

    None is no limit. One that is `fixed` keeps what it uses. Where no budget is set there are no rows.
    """

    __tablename__ = "bandwidth_share"
    __table_args__ = (
        CheckConstraint("share_bytes_per_s >= 0", name="share"),
        CheckConstraint("using_bytes_per_s >= 0", name="using"),
    )

    step_id: Mapped[int] = mapped_column(ForeignKey("step.id"), primary_key=True, autoincrement=False)
    share_bytes_per_s: Mapped[int | None]
    using_bytes_per_s: Mapped[int | None]
    fixed: Mapped[bool] = mapped_column(default=False)


class VolumeTransfer(Base):
    """How one volume crosses in one attempt: the method with its reason, where it goes, what went over the wire.

    Both places are written down when it is planned: the volume's own row names the target from the hand-over on. The
    target's file of a delta is an overlay over `base_name`, a file of the volume's own format. `target_format` is the
    format that the volume has from the hand-over on.

    Digests are those of the TPM state's blobs (docs/tpm.md); only a tpmstate volume has them.
    """

    __tablename__ = "volume_transfer"
    __table_args__ = (
        UniqueConstraint("attempt_id", "volume_id"),
        # The role is the volume's own: a TPM's state cannot be written down as a disk.
        ForeignKeyConstraint(["volume_id", "role"], ["volume.id", "volume.role"]),
        # Only swtpm has a TPM's state open: a mirror of it would copy what QEMU never sees.
        CheckConstraint("role <> 'tpmstate' OR method = 'tpm_sync'", name="tpmstate_by_tpm_sync_only"),
        CheckConstraint("method <> 'tpm_sync' OR role = 'tpmstate'", name="tpm_sync_for_tpmstate_only"),
        CheckConstraint("role <> 'tpmstate' OR target_format = 'raw'", name="tpmstate_stays_raw"),
    )

    id: Mapped[int] = mapped_column(Key, primary_key=True)
    attempt_id: Mapped[int] = mapped_column(ForeignKey("attempt.id"))
    volume_id: Mapped[int]
    role: Mapped[VolumeRole] = mapped_column(word(VolumeRole))
    method: Mapped[TransferMethod] = mapped_column(word(TransferMethod))
    reason: Mapped[str]
    source_storage_id: Mapped[int] = mapped_column(ForeignKey("storage.id"))
    source_name: Mapped[str]
    target_storage_id: Mapped[int] = mapped_column(ForeignKey("storage.id"))
    target_name: Mapped[str]
    base_name: Mapped[str | None]
    target_format: Mapped[str]
    bytes: Mapped[int] = mapped_column(default=0)
    bytes_total: Mapped[int]
    seconds: Mapped[float | None]
    digest_source: Mapped[str | None]
    digest_target: Mapped[str | None]
    identity_source: Mapped[str | None]
    identity_target: Mapped[str | None]

    attempt: Mapped[Attempt] = relationship(back_populates="transfers")
    volume: Mapped[Volume] = relationship()
    source_storage: Mapped[Storage] = relationship(foreign_keys=[source_storage_id])
    target_storage: Mapped[Storage] = relationship(foreign_keys=[target_storage_id])


class Allocation(Base):
    """Something taken on a node for one attempt:
    the row is there before the thing is made, and closed after it is gone.
    """

    __tablename__ = "allocation"
    __table_args__ = (
        CheckConstraint(
            "(kind = 'port') = (port IS NOT NULL) AND (kind = 'port') = (address IS NOT NULL)", name="port_has_address"
        ),
        CheckConstraint("port BETWEEN 1 AND 65535", name="port_range"),
        CheckConstraint("(kind = 'volume') = (path IS NOT NULL)", name="volume_has_path"),
        CheckConstraint("(kind = 'memory') = (bytes IS NOT NULL)", name="memory_has_bytes"),
        only_where("uq_allocation_port", "address", "port", where="port IS NOT NULL AND freed_at IS NULL"),
        only_where("uq_allocation_volume", "node_id", "path", where="path IS NOT NULL AND freed_at IS NULL"),
        # What was ever taken stays; what is taken now is little.
        Index("ix_allocation_attempt_id", "attempt_id", sqlite_where=_HELD, postgresql_where=_HELD),
        Index("ix_allocation_node_id", "node_id", sqlite_where=_HELD, postgresql_where=_HELD),
    )

    id: Mapped[int] = mapped_column(Key, primary_key=True)
    attempt_id: Mapped[int] = mapped_column(ForeignKey("attempt.id"))
    node_id: Mapped[int] = mapped_column(ForeignKey("node.id"))
    kind: Mapped[AllocationKind] = mapped_column(word(AllocationKind))
    purpose: Mapped[str]
    path: Mapped[str | None]
    address: Mapped[str | None]
    port: Mapped[int | None]
    bytes: Mapped[int | None]
    taken_at: Mapped[datetime]
    freed_at: Mapped[datetime | None]

    attempt: Mapped[Attempt] = relationship(back_populates="allocations")
    node: Mapped[Node] = relationship()


class Operation(Base):
    """Work on one VM at its node that is no migration: making its volumes, starting, stopping. One at a time per VM.

    `vm_id` is empty when the VM could not be defined: then only the reason is left of it.
    """

    __tablename__ = "operation"
    __table_args__ = (
        only_where("uq_operation_one_open", "vm_id", where="state IN ('ready', 'running')"),
        CheckConstraint("vm_id IS NOT NULL OR state <> 'ready'", name="ready_has_vm"),
    )

    id: Mapped[int] = mapped_column(Key, primary_key=True)
    vm_id: Mapped[int | None] = mapped_column(ForeignKey("vm.id"))
    node_id: Mapped[int] = mapped_column(ForeignKey("node.id"))
    kind: Mapped[OperationKind] = mapped_column(word(OperationKind))
    arguments: Mapped[dict[str, Any]] = mapped_column(default=dict)
    state: Mapped[OperationState] = mapped_column(word(OperationState), default=OperationState.READY)
    problems: Mapped[list[Any]] = mapped_column(default=list)
    created_at: Mapped[datetime]
    lease_s: Mapped[float | None]
    lease_until: Mapped[datetime | None]
    finished_at: Mapped[datetime | None]

    vm: Mapped[Vm | None] = relationship()
    node: Mapped[Node] = relationship()

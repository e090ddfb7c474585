"""The words that rows hold. Volume roles and methods are the field's terms of docs/glossary.md."""

from __future__ import annotations

from enum import StrEnum


class NodeState(StrEnum):
    """Whether a node takes VMs. Whether its worker is alive is a matter of the heartbeat, not of this word.

    One that is `draining` is being emptied by an evacuation, and takes none; `drained` is that it is empty. `lost` is
    the word of a person: the host is off, and whatever ran there does not run any more.
    """

    ONLINE = "online"
    DRAINING = "draining"
    DRAINED = "drained"
    MAINTENANCE = "maintenance"
    LOST = "lost"


class VmState(StrEnum):
    """What the VM does as far as the database knows; `lost` means its QEMU ended without having been told to."""

    STOPPED = "stopped"
    RUNNING = "running"
    PAUSED = "paused"
    LOST = "lost"


class VolumeRole(StrEnum):
    """What a volume is for."""

    DISK = "disk"
    EFIDISK = "efidisk"
    TPMSTATE = "tpmstate"
    CLOUDINIT = "cloudinit"
    CDROM = "cdrom"
    UNUSED = "unused"
    VMSTATE = "vmstate"


class Locality(StrEnum):
    """Who can see a volume: one node only, or all of them."""

    LOCAL = "local"
    SHARED = "shared"


class TransferMethod(StrEnum):
    """How one volume crosses in one migration."""

    MIRROR = "mirror"
    DELTA = "delta"
    COPY = "copy"
    TPM_SYNC = "tpm_sync"
    RECREATE = "recreate"
    NONE = "none"


class MigrationState(StrEnum):
    """The life of a migration. `handed_over` and `rolling_back` exclude each other:
    they decide who may run the guest.
    """

    QUEUED = "queued"
    RUNNING = "running"
    HANDED_OVER = "handed_over"
    ROLLING_BACK = "rolling_back"
    DONE = "done"
    UNDONE = "undone"
    REFUSED = "refused"
    CANCELLED = "cancelled"


class Gate(StrEnum):
    """What a limit of the queue is a limit of. A migration waits for room at two gates: before it is begun at all, and
    before its guest's RAM is moved. The bandwidth of all that crosses holds nobody back: it is shared.
    """

    PREPARE = "prepare"
    MOVE = "move"
    BANDWIDTH = "bandwidth"


class BatchState(StrEnum):
    """Whether a batch begins migrations: it does, somebody paused it, too many failed, or somebody cancelled it."""

    OPEN = "open"
    PAUSED = "paused"
    STOPPED = "stopped"
    CANCELLED = "cancelled"


class EvacuationState(StrEnum):
    """The life of an evacuation. It holds its node until it is `cancelled` or the VMs are back (`restored`).

    `planned`: it is filed, and nothing has moved. `blocked`: something cannot leave, and all else has left.
    """

    PLANNED = "planned"
    RUNNING = "running"
    PAUSED = "paused"
    BLOCKED = "blocked"
    DRAINED = "drained"
    CANCELLED = "cancelled"
    RESTORING = "restoring"
    RESTORED = "restored"


class RollState(StrEnum):
    """The life of a roll. `paused` it begins no more; it is `done` when each node had its turn or was left out."""

    RUNNING = "running"
    PAUSED = "paused"
    DONE = "done"
    CANCELLED = "cancelled"


class RollNodeState(StrEnum):
    """A node's turn in a roll: it is still to come, the node is out, it was out and is filled again, or it does not
    come.
    """

    WAITING = "waiting"
    OUT = "out"
    DONE = "done"
    LEFT_OUT = "left_out"


class EvacuationPolicy(StrEnum):
    """What may happen to a VM when its node is emptied.

    `live`: it moves while it runs. `offline_if_stopped`: it moves as it is. `live_or_pause`: also with a long pause, if
    it does not settle. `stop_by_consent`: if it cannot move while it runs, somebody may consent to its stop. `stay`: it
    stays.
    """

    LIVE = "live"
    LIVE_OR_PAUSE = "live_or_pause"
    OFFLINE_IF_STOPPED = "offline_if_stopped"
    STOP_BY_CONSENT = "stop_by_consent"
    STAY = "stay"


class RuleKind(StrEnum):
    """What a rule asks of its VMs: one node for all, a node for each, only some nodes, others than some."""

    TOGETHER = "together"
    APART = "apart"
    ONLY_ON = "only_on"
    NOT_ON = "not_on"


class TokenScope(StrEnum):
    """What a token of the HTTP API is good for: to read, to read and to change, or to deliver alerts and no more."""

    READ = "read"
    WRITE = "write"
    HOOK = "hook"


class AlertAction(StrEnum):
    """What is done with the node of an alert: it is emptied, or it takes nothing new."""

    EVACUATE = "evacuate"
    CORDON = "cordon"


class AlertState(StrEnum):
    """The life of an alert that was received: its action waits to be done, is done, was done until a person opened the
    node (`overruled`), cannot be done, was only said (`dry_run`), or the alert is over.
    """

    WAITING = "waiting"
    DONE = "done"
    OVERRULED = "overruled"
    REFUSED = "refused"
    DRY_RUN = "dry_run"
    RESOLVED = "resolved"


class LimitScope(StrEnum):
    """What a limit of the queue is about: all nodes, what leaves a node, what goes to it, what goes between two."""

    CLUSTER = "cluster"
    OUT = "out"
    IN = "in"
    PAIR = "pair"


class StepState(StrEnum):
    """The life of one phase of one attempt. `ready` and `undo_ready` are the outbox:
    a message may or may not be under way.
    """

    WAITING = "waiting"
    READY = "ready"
    RUNNING = "running"
    DONE = "done"
    FAILED = "failed"
    UNDO_READY = "undo_ready"
    UNDOING = "undoing"
    UNDONE = "undone"


class LedgerRole(StrEnum):
    """What a copy of a VM's TPM state is; exactly one per VM is `active`."""

    RESERVED = "reserved"
    ACTIVE = "active"
    QUARANTINED = "quarantined"
    DESTROYED = "destroyed"


class AllocationKind(StrEnum):
    """What was taken on a node for one attempt, and must be given back."""

    VOLUME = "volume"
    PORT = "port"
    MEMORY = "memory"


class OperationKind(StrEnum):
    """Work on one VM at one node that is no migration."""

    CREATE = "create"
    START = "start"
    STOP = "stop"
    RECOVER = "recover"
    DROP_REPLICA = "drop_replica"


class OperationState(StrEnum):
    """The life of an operation."""

    READY = "ready"
    RUNNING = "running"
    DONE = "done"
    REFUSED = "refused"
    FAILED = "failed"

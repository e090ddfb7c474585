"""What a phase needs to know about its attempt, in plain frozen values, and what it writes down while it works."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from sqlalchemy import select, update

from haulier.definition import VmDefinition
from haulier.definition.storage import Image, StoragePlace, can_be_one_file
from haulier.errors import StepFailed
from haulier.services.claims import Claim
from haulier.services.context import Context
from haulier.services.liveness import beat_seen
from haulier.services.sightings import Sightings
from models import (
    Base,
    Migration,
    MigrationState,
    Node,
    Phase,
    Side,
    Step,
    StepState,
    TransferMethod,
    VmState,
    VolumeRole,
    VolumeTransfer,
)

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
class ReplicaView:
    """The copy of a volume that the target has already, at `path`; `seen` is what the source's file looked like."""

    replication_id: int
    generation: int
    path: Path
    seen: dict[str, int] | None


@dataclass(frozen=True, slots=True)
class TransferView:
    """One volume on its way.

    Paths are those of the two nodes' own file systems, each of its storage there; `size_bytes` is the guest-visible
    size. From the hand-over on it has the `target_format`. One that `stays` is a file that both nodes see. `base_path`
    is what the target's file is an overlay over: the `replica`, or what is to become one.
    """

    id: int
    volume_id: int
    device: str
    role: VolumeRole
    method: TransferMethod
    format: str
    target_format: str
    size_bytes: int
    source_storage: str
    source_storage_id: int
    source_name: str
    source_at: StoragePlace
    source_path: Path
    target_at: StoragePlace
    target_path: Path
    target_storage: str
    target_storage_id: int
    target_name: str
    target_shared: bool
    stays: bool
    digest_source: str | None
    base_path: Path | None = None
    replica: ReplicaView | None = None

    @property
    def final_path(self) -> Path:
        """Where the volume lies in the end: an overlay is merged into its base."""
        return self.base_path or self.target_path

    @property
    def final_name(self) -> str:
        """The same, as its storage names it."""
        return str(self.base_path.relative_to(self.target_at.folder)) if self.base_path else self.target_name

    @property
    def goes_as_file(self) -> bool:
        """Whether it is copied as the file that it is; else its content alone is written, in the target's format."""
        can = can_be_one_file(self.source_at.kind, self.target_at.kind, form=self.format)
        return can and self.method is TransferMethod.COPY

    @property
    def source_image(self) -> Image:
        """The volume on the source, as its guest sees it."""
        return self.source_at.image(self.source_path, self.format, self.size_bytes)

    @property
    def target_image(self) -> Image:
        """The same on the target, in the end."""
        return self.target_at.image(self.final_path, self.target_format, self.size_bytes)

    @property
    def sent(self) -> Image:
        """What is read of one that is copied."""
        return Image(self.source_path) if self.goes_as_file else self.source_image

    @property
    def received(self) -> Image:
        """What a carrier writes: an overlay, or whatever comes, byte for byte."""
        if self.base_path:
            return Image(self.target_path, "qcow2")
        return self.target_at.image(self.target_path, "raw", self.size_bytes)

    @property
    def export(self) -> str:
        """By what name the target's carrier serves it; a device of a snapshot may be longer than QEMU takes."""
        return f"volume{self.volume_id}"


@dataclass(frozen=True, slots=True)
class Turn:
    """After the hand-over the source's volumes become the replica of this replication, as this generation."""

    replication_id: int
    generation: int


@dataclass(frozen=True, slots=True)
class AttemptView:
    """An attempt as a phase sees it; `notes` are what earlier steps wrote down for it, by phase and side.

    `offline`: the VM does not run, and nothing starts it before the attempt is over.
    `settled`: after the hand-over the guest was let run, or left as it was; whoever pauses it from now on wants that.
    `stall_s`: how long a phase may show no progress; 0 is for ever. `may_pause`: a guest that does not settle may stand
    still for as long as it takes. `replication_id`: it is a sync of that replication.
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
    may_pause: bool = False
    replication_id: int | None = None
    turn: Turn | None = None
    notes: Mapping[tuple[Phase, Side], dict[str, Any]] = field(default_factory=dict)

    @property
    def key(self) -> str:
        """The name from which both nodes derive this attempt's key."""
        return f"{self.migration_id}-{self.number}"

    def by_method(self, *methods: TransferMethod) -> tuple[TransferView, ...]:
        """The volumes that cross by one of these methods."""
        return tuple(transfer for transfer in self.transfers if transfer.method in methods)

    @property
    def crossing(self) -> tuple[TransferView, ...]:
        """The volumes of which something crosses."""
        there = self.unchanged if self.replication_id else self._notes_of(Phase.RESERVE, Side.TARGET, "linked")
        return tuple(each for each in self.transfers if not each.stays and each.device not in there)

    @property
    def unchanged(self) -> tuple[str, ...]:
        """The devices whose files look as they did when their replica was made."""
        return self._notes_of(Phase.CHECK, Side.SOURCE, "unchanged")

    def _notes_of(self, phase: Phase, side: Side, what: str) -> tuple[str, ...]:
        found: list[str] = self.notes.get((phase, side), {}).get(what, [])
        return tuple(found)

    @property
    def compared(self) -> tuple[TransferView, ...]:
        """The disks that are compared with their replicas, because no bitmap says what those lack."""
        found = self._notes_of(Phase.CHECK, Side.SOURCE, "compared")
        return tuple(each for each in self.transfers if each.device in found)

    @property
    def mirrored(self) -> tuple[TransferView, ...]:
        """The disks that QEMU writes while they cross."""
        return self.by_method(TransferMethod.MIRROR, TransferMethod.DELTA)

    @property
    def copied(self) -> tuple[TransferView, ...]:
        """The volumes whose files are copied as they are."""
        return tuple(each for each in self.crossing if each.method is TransferMethod.COPY)

    @property
    def generation(self) -> int:
        """The generation that a sync brings over, as it was fixed when it began."""
        found: int = self.notes[Phase.CHECK, Side.CONTROL]["generation"]
        return found

    @property
    def staying(self) -> tuple[TransferView, ...]:
        """The volumes that both nodes see."""
        return tuple(transfer for transfer in self.transfers if transfer.stays)

    @property
    def shares_tpm(self) -> bool:
        """Whether the TPM's state is one file for both nodes: the order of the two swtpms decides then."""
        return self.tpm is not None and self.tpm.stays

    def file_bytes(self, volume: TransferView) -> int:
        """How much is written on the target of a volume that crosses as a copy: its file is as long as the source saw
        in `check`.
        """
        if not volume.goes_as_file:
            return volume.size_bytes
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


def is_wanted(every_s: float | None, generation: int) -> bool:
    """Whether a replication has something to go on with: it was asked for for good, or holds something. A single sync
    that came to nothing is neither.
    """
    return every_s is not None or generation > 0


def note_on_step(context: Context, held: Claim, **notes: object) -> None:
    """Write something down on the step before its end, so that an undo or a later phase finds it."""
    with context.database.write() as session:
        step = session.get_one(Step, held.step_id)
        step.notes = {**step.notes, **notes}


def update_transfer(context: Context, transfer_id: int, **values: object) -> None:
    """Write down how far a volume is, or what was found out about it."""
    update_transfers(context, {transfer_id: values})


def update_transfers(context: Context, values: Mapping[int, Mapping[str, object]]) -> None:
    """The same of several at once, all with the same columns."""
    if values:
        with context.database.write() as session:
            session.execute(update(VolumeTransfer), [{"id": number, **each} for number, each in values.items()])


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


def note_tpm_let_go(context: Context, held: Claim) -> None:
    """Write down that no swtpm of the source has the shared state any more: what the target waits for. Safe twice."""
    note_on_step(context, held, tpm_let_go=True)
    context.signals.ring(f"attempt.{held.attempt_id}")


def tpm_was_let_go(context: Context, view: AttemptView, sightings: Sightings) -> bool:
    """Whether the source has noted that, or is not heard of any more by whoever asks again and again."""
    asked = sightings.moment()
    with context.database.read() as session:
        noted = session.scalars(
            select(Step.notes).where(Step.attempt_id == view.attempt_id, Step.phase == Phase.MOVE_MEMORY)
        )
        if any(notes.get("tpm_let_go") for notes in noted):
            return True
        heartbeat_at = session.scalars(select(Node.heartbeat_at).where(Node.id == view.source.id)).one()
    beat = beat_seen(heartbeat_at, limit_s=context.settings.node_silent_after_s)
    return bool(sightings.unchanged("source", {view.source.id: beat}, asked=asked))


def migration_state(context: Context, migration_id: int) -> MigrationState:
    """Where a migration stands now."""
    with context.database.read() as session:
        return session.get_one(Migration, migration_id).state


def source_note(context: Context, attempt_id: int) -> SourceNote | None:
    """What the source noted in the pause, or None as long as it has not."""
    with context.database.read() as session:
        of_the_source = (_STEP.c.attempt_id == attempt_id, _STEP.c.phase == Phase.MOVE_MEMORY)
        row = session.connection().execute(select(_STEP.c.notes, _STEP.c.marks).where(*of_the_source)).one()
        if "digest" not in row.notes:
            return None
        return SourceNote(row.notes["digest"], bool(row.notes["was_running"]), row.marks.get("paused"))


def require_sync(view: AttemptView) -> int:
    """The replication of an attempt that must be a sync's."""
    if view.replication_id is None:
        raise StepFailed("no_sync", f"the migration of {view.vm} is no sync", "This is a defect.")
    return view.replication_id


def require_tpm_transfer(view: AttemptView) -> TransferView:
    """The TPM's volume of an attempt that must have one."""
    if view.tpm is None:
        raise StepFailed("tpm_missing", f"VM {view.vm} has no TPM volume in this migration", "This is a defect.")
    return view.tpm

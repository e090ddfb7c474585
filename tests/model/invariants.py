"""What must hold between any two effects, after every move, and at the end: of the two hosts, and of rows and hosts."""

from __future__ import annotations

import json
from dataclasses import dataclass, field
from itertools import pairwise

from sqlalchemy import select
from sqlalchemy.orm import Session

from haulier.fakes.files import FakePath, FakeVolume
from haulier.fakes.processes import FakeProcess, FakeSwtpm
from haulier.fakes.qemu import FakeQemu, Memory, RunState
from models import (
    Allocation,
    LedgerRole,
    Migration,
    MigrationState,
    Phase,
    Side,
    Step,
    StepState,
    Storage,
    TpmLedger,
    Vm,
    VmState,
    Volume,
)
from models.transitions import require_legal
from tests.model.stand_ins import AWAY
from tests.model.world import CLOUDINIT, DISK, ENDS, TPM, Model
from tests.unit.services.world import IDENTITY, SOURCE, TARGET

_STATES = frozenset(MigrationState)
# Codes of problems that only a mistake in the code can bring about.
DEFECTS = ("unexpected", "source_note_lost", "tpm_missing", "volume_in_use", "volume_path_outside_storage")


@dataclass(slots=True)
class Truth:
    """What the guest was told is done, what the test has done, and whether the migration waits for an operator.

    `disturbed`: a worker was lost or slow, so that its side may have been passed by.
    """

    told: Memory = field(default_factory=Memory)
    paused: bool = False
    guest_killed: bool = False
    disturbed: bool = False
    needs_operator: bool = False


def look_at_hosts(model: Model, truth: Truth) -> None:
    """At most one side runs the guest, and the one that does remembers, and finds, all that it was told was done."""
    running = [qemu for qemu in model.pair.running(FakeQemu) if qemu.runs]
    assert len(running) <= 1, f"it runs on {[qemu.host for qemu in running]}"
    for qemu in running:
        assert not truth.paused, f"a guest that was paused runs on {qemu.host}"
        assert qemu.memory == truth.told, f"the guest on {qemu.host} is of {qemu.memory}, there was {truth.told}"
        assert _holds(qemu) == truth.told, f"volumes on {qemu.host} hold {_holds(qemu)}, there was {truth.told}"
        assert not qemu.exports, "a running guest's disks are written from outside"


def _holds(qemu: FakeQemu) -> Memory:
    assert qemu.swtpm
    assert qemu.swtpm.volume.identity == IDENTITY, f"the guest's TPM is {qemu.swtpm.volume.identity}"
    return Memory(qemu.disks[DISK].written, qemu.swtpm.volume.written)


def look_at_rows(model: Model, truth: Truth) -> None:
    """Rows and hosts agree on whose the guest is, and every file has a row. In plain SQL, because it is asked often."""
    ask = model.ask
    ((state, needs_operator, node, epoch),) = ask(
        "SELECT m.state, m.needs_operator, n.name, vm.epoch FROM migration m JOIN vm ON vm.id = m.vm_id"
        " JOIN node n ON n.id = vm.node_id"
    )
    truth.needs_operator = bool(needs_operator)
    moved = state in (MigrationState.HANDED_OVER, MigrationState.DONE)
    assert (node, epoch) == ((TARGET, 1) if moved else (SOURCE, 0)), f"{state}, and the VM is {node}'s, epoch {epoch}"
    for qemu in model.pair.running(FakeQemu):
        assert not qemu.runs or qemu.host == node, f"it runs on {qemu.host}, its row says {node}"
    active = ask("SELECT n.name, l.epoch FROM tpm_ledger l JOIN node n ON n.id = l.node_id WHERE l.role = 'active'")
    assert active == [(node, epoch)], f"the TPM is {active}'s, the VM {node}'s"
    _no_defect_shows(model)
    _moves_are_legal(model, state)
    _no_file_without_row(model, leaving=state == MigrationState.HANDED_OVER)
    _undone_in_reverse(model, truth)


def _no_defect_shows(model: Model) -> None:
    """No step ended with an error that nobody has meant, but for that of a database that is away."""
    problems = model.ask("SELECT phase, problem FROM step WHERE problem IS NOT NULL")
    found = [each for each in problems if json.loads(each[1])["code"] in DEFECTS and AWAY not in each[1]]
    assert not found, found
    # On one side nothing is done while something is undone.
    halves = model.ask("SELECT side FROM step WHERE state IN ('running', 'undoing') GROUP BY side HAVING count(*) > 1")
    assert not halves, f"two steps at once on {halves}"
    rows = dict(model.ask("SELECT phase, started_at FROM step WHERE phase IN ('move_memory', 'hand_over')"))
    assert rows["hand_over"] or not rows["move_memory"], "the guest was sent, and nobody was there to take it"


def _moves_are_legal(model: Model, state: str) -> None:
    """All that was told of the migration, in order, is a way through the table of moves; it has one end."""
    told = [kind.removeprefix("migration.") for (kind,) in model.ask("SELECT kind FROM event ORDER BY id")]
    way = [MigrationState(word) for word in told if word in _STATES]
    for before, after in pairwise(way):
        require_legal(before, after)
    assert way[-1:] in ([], [state]), f"{state}, and told was {way}"
    at_work = model.ask("SELECT phase, state FROM step WHERE state IN ('ready', 'running', 'undo_ready', 'undoing')")
    assert not at_work or state not in ENDS, f"{state}, and there is work: {at_work}"


def _undone_in_reverse(model: Model, truth: Truth) -> None:
    steps = model.ask("SELECT position, side FROM step WHERE undone_at IS NOT NULL ORDER BY undone_at")
    # A side whose worker was lost, or is silent, is passed by; the other goes backwards all the same.
    sides = [Side.SOURCE, Side.TARGET] if truth.disturbed else [None]
    for side in sides:
        positions = [position for position, of in steps if side in (None, of)]
        assert positions == sorted(positions, reverse=True), f"undone in the order {steps}"


def _no_file_without_row(model: Model, *, leaving: bool) -> None:
    known = {*model.ask(_OWNED), *model.ask(_TAKEN), *(model.ask(_LEAVING) if leaving else ())}
    assert _files(model) <= known, f"without a row: {_files(model) - known}"


_OWNED = """
SELECT n.name, s.path || '/' || v.name FROM volume v JOIN storage s ON s.id = v.storage_id
JOIN node n ON n.id = s.node_id
UNION SELECT n.name, l.path FROM tpm_ledger l JOIN node n ON n.id = l.node_id WHERE l.role IN ('active', 'quarantined')
"""
_TAKEN = """
SELECT n.name, a.path FROM allocation a JOIN node n ON n.id = a.node_id WHERE a.kind = 'volume' AND a.freed_at IS NULL
"""
_LEAVING = """
SELECT n.name, s.path || '/' || t.source_name FROM volume_transfer t JOIN storage s ON s.id = t.source_storage_id
JOIN node n ON n.id = s.node_id
"""


def _files(model: Model) -> set[tuple[str, str]]:
    """Every volume on a host, in use or not; not what a worker keeps for a moment in the VM's folder."""
    return {
        (host, str(path))
        for host, disk in model.pair.disks.items()
        for path, found in disk.contents.items()
        if isinstance(found, FakeVolume) and path.parts[2] != "run"
    }


def look_at_end(model: Model, truth: Truth) -> None:
    """Nothing goes on any more: one side has the guest or it was killed, nothing was lost, nothing is left over."""
    assert not model.strands, f"still at work: {[str(strand) for strand in model.strands]}"
    with model.context.database.read() as session:
        migration, vm = session.scalars(select(Migration)).one(), session.scalars(select(Vm)).one()
        assert migration.state in ENDS, f"it hangs: {migration.state} {[step.state for step in _steps(session)]}"
        assert not (migration.cancel_asked and migration.state is MigrationState.DONE), "a cancel was taken, and lost"
        _guest(model, truth, vm)
        _volumes_hold_all(session, truth)
        _no_row_is_open(session, migration.state)
        _no_file_is_left(model)
        _nothing_runs_on(model, vm)


def _steps(session: Session) -> list[Step]:
    return list(session.scalars(select(Step).order_by(Step.position)))


def _guest(model: Model, truth: Truth, vm: Vm) -> None:
    found = model.pair.running(FakeQemu)
    if vm.state is VmState.LOST:
        assert truth.guest_killed, "it is lost, and nobody has killed it"
        assert not found
        return
    assert [qemu.host for qemu in found] == [vm.node.name]
    (qemu,) = found
    expected = (RunState.PAUSED, RunState.POSTMIGRATE) if truth.paused else (RunState.RUNNING,)
    assert qemu.run_state in expected, f"the guest is {qemu.run_state}"
    assert vm.state is (VmState.PAUSED if truth.paused else VmState.RUNNING)
    assert vm.pid == qemu.pid
    assert qemu.memory == truth.told
    assert not (qemu.mirrors or qemu.nodes or qemu.exports or qemu.objects or qemu.nbd or qemu.client)


def _volumes_hold_all(session: Session, truth: Truth) -> None:
    rows = session.execute(select(Volume.device, Storage.path, Volume.name).join_from(Volume, Storage)).all()
    held = {device: FakePath(folder, name).volume() for device, folder, name in rows}
    assert Memory(held[DISK].written, held[TPM].written) == truth.told
    assert (held[TPM].identity, held[CLOUDINIT].written) == (IDENTITY, 1)


def _no_row_is_open(session: Session, state: MigrationState) -> None:
    assert not session.scalars(select(Allocation).where(Allocation.freed_at.is_(None))).all()
    assert not session.scalars(select(TpmLedger).where(TpmLedger.role == LedgerRole.RESERVED)).all()
    steps = {step.state for step in _steps(session) if step.phase is not Phase.CHECK}
    if state is MigrationState.DONE:
        assert steps == {StepState.DONE}
    else:
        assert not steps & {StepState.DONE, StepState.FAILED}, f"{state} with something left of it"


def _no_file_is_left(model: Model) -> None:
    owned, files = set(model.ask(_OWNED)), _files(model)
    assert files == owned, f"left over: {files - owned}, missing: {owned - files}"


def _nothing_runs_on(model: Model, vm: Vm) -> None:
    """The guest's programs run, found by their pid files; beside these the VM's folders are empty."""
    kept: set[FakeProcess] = set()
    names: set[str] = set()
    if vm.state is not VmState.LOST:
        (qemu,) = model.pair.running(FakeQemu, vm.node.name)
        kept = {qemu, *model.pair.running(FakeSwtpm, vm.node.name)}
        assert all(process is model.pair.find(process.token) for process in kept), "it could not be found again"
        assert all(swtpm is qemu.swtpm for swtpm in kept if isinstance(swtpm, FakeSwtpm)), "a TPM of nobody"
        names = {"qemu.pid", "swtpm.pid", "epoch"}
    left = set(model.pair.running(FakeProcess)) - kept
    assert not left, f"left running: {[process.token for process in left]}"
    for host, disk in model.pair.disks.items():
        found = {path.name for path in disk.contents if path.parts[2] == "run"}
        allowed = names if host == vm.node.name else set()
        assert found <= allowed, f"left in the VM's folder on {host}: {found - allowed}"
    assert not [each.port for each in model.pair.listeners if each.is_open], "somebody listens"

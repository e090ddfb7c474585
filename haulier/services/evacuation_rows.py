"""What the rows say about an evacuation: who is to leave or to come home, who is on the way, who has failed where."""

from __future__ import annotations

from collections import Counter, defaultdict
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

from sqlalchemy import and_, func, select
from sqlalchemy.orm import Session, aliased, contains_eager, joinedload, selectinload

from haulier.errors import Problem
from haulier.planner.failures import FailureClass, class_of
from haulier.planner.refusals import lost_source, silent_node
from haulier.services.cluster import Question
from haulier.services.context import Context
from haulier.services.liveness import silent_s
from haulier.services.lookup import find_numbered
from haulier.services.placed_moves import newest_promise
from haulier.services.policies import KEPT_BY_POLICY, may_be_left
from haulier.services.stopped import Mark, look_at_stopped
from models import (
    Batch,
    Evacuation,
    EvacuationState,
    EvacuationVm,
    Migration,
    MigrationState,
    Node,
    NodeState,
    Operation,
    OperationKind,
    Vm,
)
from models.transitions import AT_WORK, OPEN_EVACUATION, OPEN_MIGRATION, OPEN_OPERATION

# A target that failed so many VMs of one evacuation is not asked for others.
_FAILS_TOO_OFTEN = 2
# One that so many targets have failed is not sent to others.
_MOST_TARGETS = 3


@dataclass(frozen=True, slots=True)
class Situation:
    """`to_place` have no migration that could bring them where they are to be; `on_way` have one that has not ended, or
    are about to arrive at the node that is to be empty. One may wait to go to a node that takes none any more: it is to
    be placed again, with its number in `waiting`.

    `stuck` are those that have failed for good, each with its last reason; they are tried again when they are forgiven.
    From a node that was declared lost nothing can leave. `marks` are of those that are stopped for their moves.
    """

    homeward: bool
    node_lost: Problem | None
    to_place: tuple[Vm, ...]
    waiting: Mapping[str, int]
    on_way: tuple[str, ...]
    stuck: Mapping[str, Problem]
    question: Question
    newest: tuple[int, int]
    marks: Mapping[str, Mark]


def find_evacuation(session: Session, evacuation_id: int) -> Evacuation:
    """Raises Refused `unknown_evacuation`."""
    return find_numbered(session, Evacuation, evacuation_id, kind="evacuation")


def lost_node(node: Node) -> Problem | None:
    """Why nothing can leave or reach a node: it was declared lost."""
    return lost_source(node.name) if node.state is NodeState.LOST else None


def silent_home(context: Context, node: Node) -> Problem | None:
    """Why a node that is to take its VMs again does not yet; one that was declared lost is not waited for."""
    silent = silent_s(node, limit_s=context.settings.node_silent_after_s)
    return None if silent is None or node.state is NodeState.LOST else silent_node(node.name, silent)


def open_evacuation(session: Session, node: Node) -> Evacuation | None:
    """The one that the node belongs to now."""
    query = select(Evacuation).where(Evacuation.node_id == node.id, Evacuation.state.in_(OPEN_EVACUATION))
    return session.scalar(query)


def look(context: Context, session: Session, evacuation: Evacuation) -> Situation:
    """How it stands. Touches nothing."""
    homeward = evacuation.state is EvacuationState.RESTORING
    newest = newest_promise(session)
    vms = _to_come_home(session, evacuation) if homeward else _to_leave(session, evacuation)
    open_ = _open_migrations(session, vms)
    failures = _failures(session, evacuation, homeward=homeward)
    closed = {} if homeward else {**_closed(failures), evacuation.node.name: _own_node(evacuation.node)}
    waiting = {
        vm.name: found.id
        for vm in vms
        if (found := open_.get(vm.id))
        and _waits_for_us(found, evacuation)
        and _is_closed(context, found.target, closed)
    }
    stuck = {name: problem for name, tried in failures.items() if (problem := _for_good(tried))}
    stopped = look_at_stopped(session, evacuation)
    started, busy = stopped.starting, _not_made_yet(session, vms) | stopped.kept
    free = tuple(
        vm for vm in vms if (vm.id not in open_ or vm.name in waiting) and vm.name not in stuck and vm.id not in busy
    )
    avoids = {
        name: {target: problem for target, problem in tried if _is_targets(problem)} for name, tried in failures.items()
    }
    own = [vm for vm in vms if (vm.id in open_ or vm.id in busy) and not started.get(vm.name)]
    on_way = [
        *(vm.name for vm in own if vm.name not in waiting),
        *(name for name, problem in started.items() if problem is None),
        *(name for name in unfinished(session, evacuation) if name not in waiting),
        *(() if homeward else _arriving(session, evacuation)),
    ]
    held = {
        vm.name: stopped.told.get(vm.name) or stuck[vm.name] for vm in vms if vm.name in stuck and vm.id not in open_
    }
    held |= {name: problem for name, problem in started.items() if problem is not None}
    home = evacuation.node.name if homeward else None
    question = Question((), closed, avoids, only_to=home)
    lost = lost_node(evacuation.node)
    return Situation(homeward, lost, free, waiting, tuple(dict.fromkeys(on_way)), held, question, newest, stopped.marks)


def _own_node(node: Node) -> Problem:
    return Problem("node_draining", f"{node.name} is the node that is to be empty", "")


def _waits_for_us(migration: Migration, evacuation: Evacuation) -> bool:
    """What somebody else has filed goes where he wants it."""
    own = migration.batch is not None and migration.batch.evacuation_id == evacuation.id
    return own and migration.state is MigrationState.QUEUED


def _not_made_yet(session: Session, vms: Sequence[Vm]) -> set[int]:
    """Those whose volumes are being made: each may vanish again."""
    making = (Operation.kind == OperationKind.CREATE, Operation.state.in_(OPEN_OPERATION))
    query = select(Operation.vm_id).where(*making, Operation.vm_id.in_([vm.id for vm in vms]))
    return {vm_id for vm_id in session.scalars(query) if vm_id is not None}


def _to_leave(session: Session, evacuation: Evacuation) -> Sequence[Vm]:
    query = select(Vm).where(Vm.node_id == evacuation.node_id).order_by(Vm.name)
    return [vm for vm in session.scalars(query) if not may_be_left(vm)]


def left_behind(session: Session, node: Node) -> Sequence[Vm]:
    """The VMs that a node may be left with: they do not run, and are moved only while they do."""
    query = select(Vm).where(Vm.node_id == node.id).order_by(Vm.name)
    return [vm for vm in session.scalars(query) if may_be_left(vm)]


def _to_come_home(session: Session, evacuation: Evacuation) -> Sequence[Vm]:
    return [row.vm for row in missing(session, evacuation.node_id)]


def missing(session: Session, node_id: int) -> Sequence[EvacuationVm]:
    """The VMs that evacuations of this node, this one and those before, have sent away and nobody has brought back;
    each once. Who was moved by somebody else since is where that one wants it.
    """
    newest = (
        select(func.max(Migration.id))
        .where(Migration.vm_id == EvacuationVm.vm_id, Migration.state == MigrationState.DONE)
        .where(Migration.replication_id.is_(None))
        .correlate(EvacuationVm)
        .scalar_subquery()
    )
    query = (
        select(EvacuationVm)
        .join(Evacuation, Evacuation.id == EvacuationVm.evacuation_id)
        .join(Vm, Vm.id == EvacuationVm.vm_id)
        .join(Migration, Migration.id == newest)
        .join(Batch, Batch.id == Migration.batch_id)
        .where(Evacuation.node_id == node_id, EvacuationVm.is_home.is_(False), Vm.node_id != node_id)
        .where(EvacuationVm.target_id.is_not(None), Batch.evacuation_id.is_not(None))
        .order_by(Vm.name, Evacuation.id)
        .options(contains_eager(EvacuationVm.vm))
    )
    return list({row.vm_id: row for row in session.scalars(query)}.values())


def _open_migrations(session: Session, vms: Sequence[Vm]) -> dict[int, Migration]:
    ids = [vm.id for vm in vms]
    wanted = (Migration.vm_id.in_(ids), Migration.state.in_(OPEN_MIGRATION), Migration.replication_id.is_(None))
    query = select(Migration).where(*wanted).options(joinedload(Migration.batch), selectinload(Migration.target))
    return {migration.vm_id: migration for migration in session.scalars(query)}


def _arriving(session: Session, evacuation: Evacuation) -> Sequence[str]:
    """What had begun to come when the node was still open; what only waits to come goes on waiting."""
    query = select(Vm.name).join(Migration, Migration.vm_id == Vm.id)
    at_work = (Migration.target_id == evacuation.node_id, Migration.state.in_(AT_WORK))
    return session.scalars(query.where(*at_work, Migration.replication_id.is_(None))).all()


def unfinished(session: Session, evacuation: Evacuation) -> Sequence[str]:
    """The VMs of its migrations that have not ended, in both directions. One whose guest is on its target already has
    left things on its source; one that was at work when the way out was given up goes on, and comes home afterwards.
    """
    query = select(Vm.name).join(Migration, Migration.vm_id == Vm.id).join(Batch, Batch.id == Migration.batch_id)
    return session.scalars(query.where(Batch.evacuation_id == evacuation.id, Migration.state.in_(OPEN_MIGRATION))).all()


def _failures(session: Session, evacuation: Evacuation, *, homeward: bool) -> dict[str, list[tuple[str, Problem]]]:
    """The targets and reasons of what has failed of this evacuation since failures were forgiven, by VM, in order."""
    target = aliased(Node)
    query = (
        select(Vm.name, target.name, Migration.state, Migration.problems)
        .join(Migration, Migration.vm_id == Vm.id)
        .join(Batch, Batch.id == Migration.batch_id)
        .join(target, target.id == Migration.target_id)
        .outerjoin(
            EvacuationVm, and_(EvacuationVm.evacuation_id == evacuation.id, EvacuationVm.vm_id == Migration.vm_id)
        )
        .where(
            Batch.evacuation_id == evacuation.id,
            Batch.homeward.is_(homeward),
            Migration.state.in_((MigrationState.UNDONE, MigrationState.REFUSED, MigrationState.CANCELLED)),
            Migration.id > evacuation.tried_after,
            Migration.id > func.coalesce(EvacuationVm.tried_after, 0),
        )
        .order_by(Migration.id)
    )
    found: dict[str, list[tuple[str, Problem]]] = defaultdict(list)
    for vm, to, state, problems in session.execute(query):
        hint = f"haulier evacuation resume {evacuation.id} tries again."
        cancelled = Problem("migration_cancelled", f"the migration of {vm} was cancelled", hint)
        ended = state is MigrationState.CANCELLED
        if problems and problems[0] == lost_source(evacuation.node.name).as_dict():
            # Its source was lost; nobody has tried the target.
            continue
        if problems and problems[0]["code"] in KEPT_BY_POLICY:
            continue
        found[vm].append((to, cancelled if ended or not problems else Problem(**problems[0])))
    return found


def _for_good(tried: Sequence[tuple[str, Problem]]) -> Problem | None:
    """The last reason, if it is none of its target's, or of so many targets that it is hardly theirs: it has been tried
    as often as that helps.
    """
    last = tried[-1][1]
    return None if _is_targets(last) and len(tried) < _MOST_TARGETS else last


def _is_targets(problem: Problem) -> bool:
    return class_of(problem.code) is FailureClass.TARGET


def _closed(failures: Mapping[str, Sequence[tuple[str, Problem]]]) -> dict[str, Problem]:
    """The targets that have failed several VMs: it is not the VMs."""
    failed = Counter(
        target for tried in failures.values() for target in {to for to, problem in tried if _is_targets(problem)}
    )
    return {
        target: Problem(
            "target_failed", f"{target} has failed {number} VMs of this evacuation", "Mend it, then resume."
        )
        for target, number in failed.items()
        if number >= _FAILS_TOO_OFTEN
    }


def _is_closed(context: Context, target: Node, closed: Mapping[str, Problem]) -> bool:
    silent = silent_s(target, limit_s=context.settings.node_silent_after_s) is not None
    return target.name in closed or target.state is not NodeState.ONLINE or silent

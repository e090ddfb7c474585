"""How a batch is filed: all of it is checked first, then written in one transaction, under a key that makes it one."""

from __future__ import annotations

import hashlib
import json
import uuid
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from datetime import datetime
from typing import Any

from sqlalchemy import insert, select
from sqlalchemy.exc import IntegrityError
from sqlalchemy.orm import Session, selectinload

from haulier.clock import now
from haulier.definition.batch_file import AUTO, BatchEntry, BatchFile, at_line, refused
from haulier.definition.values import label_name
from haulier.errors import Problem, Refused
from haulier.planner.batches import Known, Policy, check_batch, read_policy
from haulier.planner.failures import lasting
from haulier.planner.placement import Host, choose_host
from haulier.planner.refusals import STARTED, refuse_filing
from haulier.services.admission import AT_ONCE_S, admit
from haulier.services.batches import show_batch
from haulier.services.context import Context, Unit
from haulier.services.filing import USUAL_PRIORITY, Plan, Terms, Wanted, meets_another, plan_migrations, values_of
from haulier.services.hosts import hosts_now, ram_bytes_of, storages_of
from haulier.services.lookup import find_node
from models import Batch, Event, Migration, MigrationAfter, MigrationState, Node, Vm, Volume

# Of many, some meet what passes by itself.
USUAL_TRIES = 3
# So many are asked at once; SQLite takes no more than some ten thousand numbers in one statement.
_PORTION = 500


@dataclass(frozen=True, slots=True)
class _Planned:
    """An entry with its VM and target; `problems` are why it would be refused now for good."""

    entry: BatchEntry
    wanted: Wanted
    problems: tuple[Problem, ...]


@dataclass(frozen=True, slots=True)
class _There:
    """What there is for all entries: the nodes by name, what is free on them, and how often each may be tried."""

    nodes: dict[str, Node]
    hosts: list[Host]
    tries: int


def submit(
    context: Context,
    file: BatchFile,
    *,
    key: str | None = None,
    policy: str | None = None,
    tries: int = USUAL_TRIES,
    label: str | None = None,
) -> dict[str, Any]:
    """File a batch. The same again, or another one under its key, is the batch that is there already. `label` is of
    those entries that have none.

    Everything is checked first. Raises Refused with all that is wrong, each with its line; nothing is filed then.
    """
    chosen = read_policy(policy or file.policy)
    if label is not None:
        file = _labelled(file, label_name(label))
    if key is not None and not key.strip():
        raise Refused("bad_batch", "an empty key is none", "Leave --key out, or give it a word.")
    key = key or _key_of(file)
    # What cannot be read whole is no batch that is there already, though the rest of it may be.
    if not file.problems and (there := _find_by_key(context, key)) is not None:
        return {**show_batch(context, there), "again": True}
    with context.database.read() as session:
        planned = _plan(context, session, file, tries=tries)
    problems = [problem for each in planned for problem in _with_line(each)]
    if problems and chosen.all_or_nothing:
        raise refused(problems)
    try:
        batch_id = _write(context, file, planned, key=key, policy=chosen)
    except IntegrityError as error:
        if (there := _find_by_key(context, key)) is not None:
            return {**show_batch(context, there), "again": True}
        if not meets_another(error):
            raise
        words = "a migration of one of these VMs was filed in this moment"
        raise Refused("migration_open", words, "haulier queue; then submit it again.") from error
    admit(context, at_most_s=AT_ONCE_S)
    return {**show_batch(context, batch_id), "again": False}


def _labelled(file: BatchFile, label: str) -> BatchFile:
    return replace(file, entries=tuple(replace(each, label=each.label or label) for each in file.entries))


def _key_of(file: BatchFile) -> str:
    """What the entries say, whatever the form of the file. VMs that were chosen are others the next time."""
    if file.chosen:
        return uuid.uuid4().hex
    said = [
        (
            *(each.vm, each.target, each.priority, each.after, each.deadline and each.deadline.isoformat()),
            *([each.label] if each.label else []),
        )
        for each in file.entries
    ]
    return hashlib.sha256(json.dumps(said).encode()).hexdigest()


def _find_by_key(context: Context, key: str) -> int | None:
    with context.database.read() as session:
        return session.scalar(select(Batch.id).where(Batch.key == key))


def _with_line(planned: _Planned) -> Iterator[Problem]:
    for problem in planned.problems:
        yield replace(problem, message=at_line(planned.entry.line, problem.message))


def _plan(context: Context, session: Session, file: BatchFile, *, tries: int) -> list[_Planned]:
    """Look at everything that is known. Raises Refused for what is wrong with the batch as such."""
    nodes = {node.name: node for node in session.scalars(select(Node))}
    vms = {vm.name: vm for vm in session.scalars(select(Vm))}
    by_id = {node.id: node.name for node in nodes.values()}
    known = Known({name: by_id[vm.node_id] for name, vm in vms.items()}, frozenset(nodes), now(), file.unread)
    if problems := [*file.problems, *check_batch(file.entries, known)]:
        raise refused(problems)
    there = _There(nodes, hosts_now(context, session), tries)
    planned = list[_Planned]()
    for first in range(0, len(file.entries), _PORTION):
        portion = [(entry, vms[entry.vm]) for entry in file.entries[first : first + _PORTION]]
        planned += _plan_some(context, session, portion, there)
    return planned


def _plan_some(
    context: Context, session: Session, portion: Sequence[tuple[BatchEntry, Vm]], there: _There
) -> Iterator[_Planned]:
    """Targets are chosen one after the other, then all is asked at once."""
    if any(entry.target == AUTO for entry, _ in portion):
        _load_volumes(session, [vm for _, vm in portion])
    chosen = [_choose(entry, vm, there) for entry, vm in portion]
    wishes = [each.wanted for each in chosen if not each.problems]
    plans = iter(plan_migrations(context, session, wishes))
    for each in chosen:
        yield each if each.problems else _asked(each, next(plans))


def _load_volumes(session: Session, vms: Sequence[Vm]) -> None:
    """Have them with their VMs, which would ask for them one by one."""
    loaded = selectinload(Vm.volumes).joinedload(Volume.storage)
    session.scalars(select(Vm).where(Vm.id.in_([vm.id for vm in vms])).options(loaded)).all()


def _choose(entry: BatchEntry, vm: Vm, there: _There) -> _Planned:
    """The entry with its target. The problem is that there is none."""
    priority = USUAL_PRIORITY if entry.priority is None else entry.priority
    terms = Terms(offline=vm.state not in STARTED, priority=priority, tries=there.tries, label=entry.label)
    nodes = there.nodes
    target = entry.target
    if target == AUTO:
        host = choose_host(there.hosts, source=vm.node.name, ram_bytes=ram_bytes_of(vm), storages=storages_of(vm))
        if host is None:
            words = f"no node has all storages of VM {vm.name} and room for its RAM"
            problem = Problem("no_target", words, "Name one, or look at `haulier node list`.")
            others = [name for name in nodes if name != vm.node.name]
            if not others:
                raise Refused.because((replace(problem, message=at_line(entry.line, words)),))
            # Any will do for the record of what was refused.
            return _Planned(entry, Wanted(vm, nodes[others[0]], terms), (problem,))
        target = host.name
    return _Planned(entry, Wanted(vm, nodes[target], terms), ())


def _asked(planned: _Planned, plan: Plan) -> _Planned:
    wanted = replace(planned.wanted, planned_bytes=plan.bytes)
    return replace(planned, wanted=wanted, problems=lasting(refuse_filing(plan.facts)))


def _write(context: Context, file: BatchFile, planned: Sequence[_Planned], *, key: str, policy: Policy) -> int:
    """All rows in one transaction, and few statements: whoever commits a hand-over waits for it."""
    moment = now()
    with context.unit() as unit:
        batch = Batch(key=key, name=file.name, stop_after=policy.stop_after, forgiven=0, created_at=moment)
        unit.session.add(batch)
        unit.session.flush()
        rows = [_row(context, batch, each, moment, place) for place, each in enumerate(planned)]
        query = insert(Migration).returning(Migration.id, sort_by_parameter_order=True)
        ids = list(unit.session.scalars(query, rows))
        _write_order(unit, planned, ids)
        events = [_event(each, number, moment) for each, number in zip(planned, ids, strict=True)]
        unit.session.execute(insert(Event), events)
        unit.note("batch.submitted", batch=batch.id, name=file.name, migrations=len(ids))
        return batch.id


def _row(context: Context, batch: Batch, planned: _Planned, moment: datetime, place: int) -> dict[str, Any]:
    ended = {"state": MigrationState.REFUSED, "finished_at": moment} if planned.problems else {"finished_at": None}
    return {
        **values_of(context.settings, planned.wanted, at=moment, place=place),
        "batch_id": batch.id,
        "target_auto": planned.entry.target == AUTO,
        "deadline": planned.entry.deadline,
        "problems": [problem.as_dict() for problem in planned.problems],
        **ended,
    }


def _write_order(unit: Unit, planned: Sequence[_Planned], ids: Sequence[int]) -> None:
    numbers = {each.entry.vm: number for each, number in zip(planned, ids, strict=True)}
    pairs = [
        {"migration_id": numbers[each.entry.vm], "after_id": numbers[name]}
        for each in planned
        for name in dict.fromkeys(each.entry.after)
    ]
    if pairs:
        unit.session.execute(insert(MigrationAfter), pairs)


def _event(planned: _Planned, migration_id: int, moment: datetime) -> dict[str, Any]:
    wanted = planned.wanted
    return {
        "at": moment,
        "kind": "migration.refused" if planned.problems else "migration.queued",
        "vm": wanted.vm.name,
        "node": None,
        "migration": migration_id,
        "data": {"source": wanted.vm.node.name, "target": wanted.target.name},
    }


def select_entries(context: Context, *, node: str | None, tag: str | None, target: str) -> BatchFile:
    """The batch of all VMs that are on a node and have a tag, as far as these are given, and not there already.

    Raises Refused if there is none.
    """
    with context.database.read() as session:
        if node is not None:
            find_node(session, node)
        vms = session.scalars(select(Vm).order_by(Vm.name)).all()
        chosen = [
            vm.name
            for vm in vms
            if (node is None or vm.node.name == node)
            and (tag is None or tag in vm.definition.get("tags", ()))
            and vm.node.name != target
        ]
    if not chosen:
        raise Refused("batch_empty", "no VM is chosen by that, or all are there already", "haulier vm list")
    return BatchFile(tuple(BatchEntry(0, name, target, None, (), None) for name in chosen), chosen=True)

"""The queue as people see it: who waits, in which place, and for what."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from datetime import datetime
from typing import Any

from sqlalchemy import Row, Select
from sqlalchemy.orm import Session

from haulier.clock import now
from haulier.errors import Refused
from haulier.planner.admission import decide, rank
from haulier.planner.forecast import Span
from haulier.planner.limits import Hold
from haulier.services.admission import waiting, wish_of
from haulier.services.context import Context
from haulier.services.filing import require_priority
from haulier.services.forecast import spans
from haulier.services.gate import at_gate, is_at_gate, wish_at_gate
from haulier.services.holds import ITS_TURN, blocked_now, busy_with
from haulier.services.lookup import find_migration
from haulier.services.room import ADMISSION, load_room
from haulier.services.waiting import make_room
from models import Gate, Migration, MigrationState, Vm


@dataclass(frozen=True, slots=True)
class Place:
    """One that waits at a gate: its place there, from 1 on, and what holds it. `id` is the migration's."""

    id: int
    gate: Gate
    vm: str
    source: str
    target: str
    label: str | None
    priority: int
    position: int
    filed_at: datetime
    hold: Hold

    @property
    def waiting_for(self) -> dict[str, Any]:
        """The hold as contract.md shows it."""
        return asdict(self.hold)


def all_places(context: Context, session: Session, blocked: Mapping[int, Hold]) -> list[Place]:
    """All that wait, each gate's in the queue's order; those that are prepared come first."""
    return [*places_at_gate(context, session), *_places_before_begin(context, session, blocked)]


def _places_before_begin(context: Context, session: Session, blocked: Mapping[int, Hold]) -> list[Place]:
    """All that have not begun, in the queue's order. What holds them is decided by what decides who begins."""
    rows = session.execute(_with_vm(waiting())).all()
    wishes = [wish_of(row, blocked=blocked.get(row.id)) for row in rows]
    granted, held = decide(wishes, load_room(context, session, Gate.PREPARE))
    busy = busy_with(session, [wish.id for wish in granted])
    return _places(Gate.PREPARE, rows, {**held, **busy})


def places_at_gate(context: Context, session: Session) -> list[Place]:
    """All that are prepared and wait before their guests' RAM is moved, in the same order."""
    rows = session.execute(_with_vm(at_gate())).all()
    held = decide([wish_at_gate(row) for row in rows], load_room(context, session, Gate.MOVE))[1]
    return _places(Gate.MOVE, rows, held)


def _with_vm(query: Select[*tuple[Any, ...]]) -> Select[*tuple[Any, ...]]:
    return query.join(Vm, Migration.vm_id == Vm.id).add_columns(Vm.name.label("vm"), Migration.priority)


def _places(gate: Gate, rows: Sequence[Row[*tuple[Any, ...]]], held: Mapping[int, Hold]) -> list[Place]:
    return [
        Place(
            row.migration_id, gate, row.vm, row.source, row.target, row.label, row.priority, position, row.filed_at,
            held.get(row.id, ITS_TURN),
        )
        for position, row in enumerate(rows, start=1)
    ]  # fmt: skip


def set_priority(context: Context, migration_id: int, priority: int) -> dict[str, Any]:
    """Change the place of a migration that waits, at either gate. Returns its entry of the queue, as far as it has one.

    Raises Refused for one that does not wait.
    """
    require_priority(priority)
    with context.unit() as unit:
        context.database.exclude_others(unit.session, ADMISSION)
        migration = find_migration(unit.session, migration_id)
        waits = migration.state is MigrationState.QUEUED
        if not waits and not (migration.attempts and is_at_gate(migration.attempts[-1])):
            hint = "Only one that waits has a place in the queue: haulier queue"
            raise Refused("not_waiting", f"migration {migration_id} does not wait", hint)
        migration.rank += rank(0.0, priority=priority) - rank(0.0, priority=migration.priority)
        migration.priority = priority
        unit.note("migration.priority", vm=migration.vm.name, migration=migration_id, priority=priority)
        make_room(unit)
    place = next((each for each in list_queue(context) if each["id"] == migration_id), None)
    # Its turn may have come in this moment.
    return place or {"id": migration_id, "priority": priority, "position": None, "waiting_for": None}


def list_queue(context: Context) -> list[dict[str, Any]]:
    """All that wait as contract.md shows them, in the order of `all_places`."""
    moment = now()
    with context.database.read() as session:
        blocked = blocked_now(session)
        begins = spans(context, session, blocked=blocked)
        return [
            {
                "id": place.id,
                "vm": place.vm,
                "source": place.source,
                "target": place.target,
                "label": place.label,
                "priority": place.priority,
                "gate": place.gate,
                "position": place.position,
                "waited_s": round((moment - place.filed_at).total_seconds(), 1),
                "starts_in_s": _starts_in_s(place, begins),
                "waiting_for": place.waiting_for,
            }
            for place in all_places(context, session, blocked)
        ]


def _starts_in_s(place: Place, begins: Mapping[int, Span]) -> float | None:
    """When it is expected to begin; None for one that has begun, and where nobody can say."""
    span = begins.get(place.id) if place.gate is Gate.PREPARE else None
    return round(span.begin_s, 1) if span else None

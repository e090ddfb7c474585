"""What is taken on a node for one attempt: files, ports, RAM. The row comes before the thing, and goes after it."""

from __future__ import annotations

import random
from pathlib import Path

from sqlalchemy import select, update
from sqlalchemy.exc import IntegrityError
from sqlalchemy.orm import Session

from haulier.clock import now
from haulier.definition.storage import StoragePlace
from haulier.errors import Refused
from haulier.services.attempts import NodeView
from haulier.services.context import Context
from haulier.services.nodes import place_of
from models import Allocation, AllocationKind, Attempt, Replica, Storage, Volume

# How often another port is tried when the first is taken by somebody outside Haulier.
_PORT_TRIES = 40
OLD_FILE = "old file"


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


def put_away(session: Session, attempt_id: int, node_id: int, path: Path) -> None:
    """Write down that a file is nobody's any more, before it goes: it is found then if we end right here."""
    session.add(
        Allocation(
            attempt_id=attempt_id,
            node_id=node_id,
            kind=AllocationKind.VOLUME,
            purpose=OLD_FILE,
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


def paths_in_use(context: Context, node_id: int, *, attempt_id: int = 0) -> frozenset[Path]:
    """Every path of a node that is some VM's volume or a replica now, or that an attempt which is not over has taken
    there, but this one: nothing that frees may touch one of them.
    """
    names = (Volume.name, Replica.name, Replica.overlay)
    queries = (
        select(Storage.path, name).join(name.class_).where(Storage.node_id == node_id, name.is_not(None))
        for name in names
    )
    taken = (
        select(Allocation.path)
        .join(Attempt, Allocation.attempt_id == Attempt.id)
        .where(Allocation.node_id == node_id, Allocation.kind == AllocationKind.VOLUME, Allocation.freed_at.is_(None))
        .where(Attempt.id != attempt_id, Allocation.purpose != OLD_FILE, Attempt.finished_at.is_(None))
    )
    with context.database.read() as session:
        named = {Path(folder) / str(name) for query in queries for folder, name in session.execute(query)}
        return frozenset(named | {Path(path) for path in session.scalars(taken) if path})


def storage_places(context: Context, node_id: int) -> tuple[StoragePlace, ...]:
    """A node's storages: an allocation's row names a path and not the storage it is on."""
    with context.database.read() as session:
        return tuple(place_of(row) for row in session.scalars(select(Storage).where(Storage.node_id == node_id)))


def take_port(context: Context, attempt_id: int, node: NodeView, purpose: str, *, avoid: frozenset[int]) -> int:
    """Promise a port of the node's range to this attempt. No two open promises have the same address and port.

    Where in the range the search begins is left to chance, so that other programs of the host are met rarely. Raises
    Refused `no_port` when the range is used up.
    """
    first, last = node.ports
    with context.database.read() as session:
        promised = session.scalars(
            select(Allocation.port).where(
                Allocation.address == node.address, Allocation.port.is_not(None), Allocation.freed_at.is_(None)
            )
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
    node_id: int | None = None,
) -> None:
    """Write down that what the attempt had taken is given back; without a filter all of it. Safe to call twice."""
    wanted = [Allocation.attempt_id == attempt_id, Allocation.freed_at.is_(None)]
    if kind is not None:
        wanted.append(Allocation.kind == kind)
    if purpose is not None:
        wanted.append(Allocation.purpose == purpose)
    if path is not None:
        wanted.append(Allocation.path == str(path))
    if node_id is not None:
        wanted.append(Allocation.node_id == node_id)
    with context.database.write() as session:
        session.execute(update(Allocation).where(*wanted).values(freed_at=now()))

"""The event log, read in its order."""

from __future__ import annotations

from typing import Any

from sqlalchemy import select

from haulier.services.context import Context
from models import Event


def list_events(context: Context, *, after: int = 0, limit: int = 1000) -> list[tuple[int, dict[str, Any]]]:
    """Events with a greater number than `after`, oldest first, as contract.md shows them."""
    with context.database.read() as session:
        rows = session.scalars(select(Event).where(Event.id > after).order_by(Event.id).limit(limit))
        return [
            (
                row.id,
                {
                    "at": row.at.isoformat(),
                    "kind": row.kind,
                    "vm": row.vm,
                    "node": row.node,
                    "migration": row.migration,
                    "data": row.data,
                },
            )
            for row in rows
        ]

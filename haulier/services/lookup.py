"""Rows by the names that people use, with an error that says what there is instead."""

from __future__ import annotations

from collections.abc import Sequence

from sqlalchemy import select
from sqlalchemy.orm import Session

from haulier.errors import Refused, meant
from models import Migration, Node, Vm

_FEW = 8


def find_node(session: Session, name: str, *, lock: bool = False) -> Node:
    """Raises Refused `unknown_node`. With `lock` nobody else changes its state before the transaction ends."""
    query = select(Node).where(Node.name == name)
    locked = query.with_for_update(of=Node).execution_options(populate_existing=True)
    node = session.scalar(locked if lock else query)
    if node is None:
        raise _unknown("node", name, session.scalars(select(Node.name)).all(), "haulier node list")
    return node


def find_vm(session: Session, name: str, *, lock: bool = False) -> Vm:
    """Raises Refused `unknown_vm`. With `lock` nobody else files work on the VM before the transaction ends."""
    query = select(Vm).where(Vm.name == name)
    vm = session.scalar(query.with_for_update(of=Vm) if lock else query)
    if vm is None:
        raise _unknown("vm", name, session.scalars(select(Vm.name)).all(), "haulier vm list")
    return vm


def find_migration(session: Session, migration_id: int) -> Migration:
    """Raises Refused `unknown_migration`."""
    # A number that no database could hold is one that nobody has.
    migration = session.get(Migration, migration_id) if 0 < migration_id < 1 << 63 else None
    if migration is None:
        raise Refused("unknown_migration", f"there is no migration {migration_id}", "haulier migration list")
    return migration


def _there_are(names: Sequence[str]) -> str:
    """The names, if they fit on a line."""
    return f"There is: {', '.join(sorted(names))}." if 0 < len(names) <= _FEW else ""


def _unknown(kind: str, name: str, names: Sequence[str], hint: str) -> Refused:
    label = {"vm": "VM"}.get(kind, kind)
    return Refused(
        f"unknown_{kind}",
        f"there is no {label} called {name}",
        meant(name, names) or _there_are(names) or f"See `{hint}`.",
    )

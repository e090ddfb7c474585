"""Rows by the names that people use, with an error that says what there is instead."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TypeVar

from sqlalchemy import select
from sqlalchemy.orm import Session

from haulier.errors import Refused, meant
from models import Base, Migration, Node, Vm

_FEW = 8
Numbered = TypeVar("Numbered", bound=Base)


def find_node(session: Session, name: str, *, lock: bool = False) -> Node:
    """Raises Refused `unknown_node`. With `lock` nobody else changes its state before the transaction ends."""
    query = select(Node).where(Node.name == name)
    locked = query.with_for_update(of=Node).execution_options(populate_existing=True)
    node = session.scalar(locked if lock else query)
    if node is None:
        raise unknown("node", name, session.scalars(select(Node.name)).all(), "haulier node list")
    return node


def find_vm(session: Session, name: str, *, lock: bool = False) -> Vm:
    """Raises Refused `unknown_vm`. With `lock` nobody else files work on the VM before the transaction ends."""
    query = select(Vm).where(Vm.name == name)
    vm = session.scalar(query.with_for_update(of=Vm) if lock else query)
    if vm is None:
        raise unknown("vm", name, session.scalars(select(Vm.name)).all(), "haulier vm list")
    return vm


def find_migration(session: Session, migration_id: int) -> Migration:
    """Raises Refused `unknown_migration`."""
    return find_numbered(session, Migration, migration_id, kind="migration")


def find_numbered(session: Session, table: type[Numbered], number: int, *, kind: str) -> Numbered:
    """The row of this number. Raises Refused `unknown_<kind>`; `haulier <kind> list` shows those that there are."""
    # A number that no database could hold is one that nobody has.
    row = session.get(table, number) if 0 < number < 1 << 63 else None
    if row is None:
        raise Refused(f"unknown_{kind}", f"there is no {kind} {number}", f"haulier {kind} list")
    return row


def _there_are(names: Sequence[str]) -> str:
    """The names, if they fit on a line."""
    return f"There is: {', '.join(sorted(names))}." if 0 < len(names) <= _FEW else ""


def unknown(kind: str, name: str, names: Sequence[str], hint: str) -> Refused:
    """What is to be raised where none of a kind has this name; these have `names`."""
    label = {"vm": "VM"}.get(kind, kind)
    return Refused(
        f"unknown_{kind}",
        f"there is no {label} called {name}",
        meant(name, names) or _there_are(names) or f"See `{hint}`.",
    )

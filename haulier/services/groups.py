"""Groups of nodes, as people make, change and see them."""

from __future__ import annotations

from collections.abc import Collection
from dataclasses import dataclass
from typing import Any

from sqlalchemy import delete, select, update
from sqlalchemy.exc import IntegrityError
from sqlalchemy.orm import Session

from haulier.clock import now
from haulier.errors import Refused
from haulier.services.context import Context, Unit
from haulier.services.group_room import out_of
from haulier.services.lookup import find_node, unknown
from haulier.services.roll_turns import roll_message
from haulier.settings import NAME
from models import MaintenanceWindow, NodeGroup, NodeGroupNode, Roll
from models.transitions import OPEN_ROLL

# `haulier roll WORD` means these, and not a group.
ROLL_WORDS = frozenset({"cancel", "list", "pause", "resume", "show"})
_MOST_AT_ONCE = 10_000


def add_group(context: Context, name: str, nodes: Collection[str], *, at_once: int = 1) -> dict[str, Any]:
    """Make a group. Raises Refused for an unknown node, a name that is taken or is none, and a group of no nodes."""
    if not NAME.fullmatch(name):
        raise Refused("bad_name", f"{name!r} is no name for a group", "Letters, digits, dot, dash and underscore.")
    if name in ROLL_WORDS:
        raise Refused("bad_name", f"`haulier roll {name}` would not mean a group {name}", "Another name.")
    _require_sense(at_once, nodes)
    try:
        with context.unit() as unit:
            if unit.session.scalar(select(NodeGroup.id).where(NodeGroup.name == name)) is not None:
                raise _taken(name)
            group = NodeGroup(name=name, max_at_once=at_once, created_at=now())
            group.nodes = [find_node(unit.session, node) for node in sorted(set(nodes))]
            unit.session.add(group)
            unit.session.flush()
            unit.note("group.added", group=name, nodes=sorted(set(nodes)), at_once=at_once)
            return _document(unit.session, group)
    except IntegrityError as error:
        if not any(word in str(error.orig) for word in ("uq_node_group_name", "node_group.name")):
            raise
        raise _taken(name) from error


def _taken(name: str) -> Refused:
    return Refused("group_exists", f"there is a group {name} already", f"haulier group set {name}")


def _require_sense(at_once: int | None, nodes: Collection[str]) -> None:
    if at_once is not None and not 1 <= at_once <= _MOST_AT_ONCE:
        raise Refused("bad_group", f"{at_once} nodes at once are none", f"--at-once: 1 to {_MOST_AT_ONCE}.")
    if not nodes:
        raise Refused("bad_group", "a group of no nodes is none", "Name some.")


def list_groups(context: Context) -> list[dict[str, Any]]:
    """All groups, by name."""
    with context.database.read() as session:
        groups = session.scalars(select(NodeGroup).order_by(NodeGroup.name)).all()
        return [_document(session, group) for group in groups]


def show_group(context: Context, name: str) -> dict[str, Any]:
    """One group. Raises Refused for an unknown one."""
    with context.database.read() as session:
        return _document(session, find_group(session, name))


@dataclass(frozen=True, slots=True)
class GroupChange:
    """What a person may change about a group; None leaves it."""

    at_once: int | None = None
    add: Collection[str] = ()
    remove: Collection[str] = ()


def change_group(context: Context, name: str, change: GroupChange) -> dict[str, Any]:
    """Change a group; what is under way goes on. Raises Refused for an unknown one, for nodes that are unknown or not
    in it, and for a group of no nodes; nothing was changed then.
    """
    if change == GroupChange():
        raise Refused("nothing_to_set", "nothing is named", "--at-once K, --add NODE, --remove NODE.")
    with context.unit() as unit:
        group = find_group(unit.session, name, lock=True)
        there = {node.name for node in group.nodes}
        if strangers := sorted(set(change.remove) - there):
            words = f"{', '.join(strangers)} {'is' if len(strangers) == 1 else 'are'} not in group {name}"
            raise Refused("not_in_group", words, f"haulier group show {name}")
        names = sorted((there - set(change.remove)) | set(change.add))
        _require_sense(change.at_once, names)
        group.nodes = [find_node(unit.session, node) for node in names]
        group.max_at_once = change.at_once or group.max_at_once
        unit.session.flush()
        unit.note("group.changed", group=name, nodes=names, at_once=group.max_at_once)
        _tell_roll(unit, group)
        return _document(unit.session, group)


def _tell_roll(unit: Unit, group: NodeGroup) -> None:
    """It may have room now."""
    if (roll_id := open_roll_id(unit.session, group)) is not None:
        unit.send(roll_message(roll_id))


def open_roll_id(session: Session, group: NodeGroup) -> int | None:
    """The roll of the group that is not over."""
    return session.scalar(select(Roll.id).where(Roll.group_id == group.id, Roll.state.in_(OPEN_ROLL)))


def remove_group(context: Context, name: str) -> dict[str, Any]:
    """Take a group away; its nodes stay, and its rolls can be shown. Returns it as it was.

    Raises Refused for an unknown one, while it is rolled through, and while a window belongs to it.
    """
    with context.unit() as unit:
        group = find_group(unit.session, name, lock=True)
        document = _document(unit.session, group)
        if document["roll"] is not None:
            hint = f"haulier roll cancel {document['roll']}"
            raise Refused("roll_open", f"roll {document['roll']} of group {name} is not over", hint)
        window = select(MaintenanceWindow.id).where(MaintenanceWindow.group_id == group.id)
        if (window_id := unit.session.scalar(window.limit(1))) is not None:
            words = f"window {window_id} belongs to group {name}"
            raise Refused("window_there", words, f"haulier window remove {window_id}")
        unit.session.execute(update(Roll).where(Roll.group_id == group.id).values(group_id=None))
        unit.session.execute(delete(NodeGroupNode).where(NodeGroupNode.group_id == group.id))
        unit.session.execute(delete(NodeGroup).where(NodeGroup.id == group.id))
        unit.note("group.removed", group=name)
        return document


def find_group(session: Session, name: str, *, lock: bool = False) -> NodeGroup:
    """Raises Refused `unknown_group`. With `lock` nobody else changes it, or begins to roll through it or to empty a
    node of it, before the transaction ends.
    """
    query = select(NodeGroup).where(NodeGroup.name == name)
    locked = query.with_for_update(of=NodeGroup).execution_options(populate_existing=True)
    group = session.scalar(locked if lock else query)
    if group is None:
        there = session.scalars(select(NodeGroup.name)).all()
        raise unknown("group", name, there, "haulier group list")
    return group


def _document(session: Session, group: NodeGroup) -> dict[str, Any]:
    out = {each.node: each.why for each in out_of(session, group.id)}
    return {
        "name": group.name,
        "at_once": group.max_at_once,
        "nodes": [{"node": node.name, "state": node.state, "out": out.get(node.name)} for node in group.nodes],
        "roll": open_roll_id(session, group),
    }

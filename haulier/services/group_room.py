"""How many nodes of a group are out, and so whether another one may be."""

from __future__ import annotations

from collections.abc import Collection, Sequence
from dataclasses import dataclass

from sqlalchemy import and_, or_, select
from sqlalchemy.orm import Session

from haulier.errors import Problem
from models import Evacuation, Node, NodeGroup, NodeGroupNode, NodeState
from models.transitions import OPEN_EVACUATION


@dataclass(frozen=True, slots=True)
class Out:
    """A node that is out, and why."""

    node_id: int
    node: str
    why: str


def hold_groups(session: Session, node: str) -> None:
    """Until the end of this writing transaction no other evacuation begins in the groups of the node. The first lock of
    the transaction, in the order of the groups' ids.
    """
    query = (
        select(NodeGroup.id)
        .join(NodeGroupNode, NodeGroupNode.group_id == NodeGroup.id)
        .join(Node, Node.id == NodeGroupNode.node_id)
        .where(Node.name == node)
        .order_by(NodeGroup.id)
    )
    session.execute(query.with_for_update(of=NodeGroup)).all()


def full_groups(session: Session, node: Node) -> tuple[Problem, ...]:
    """Why another evacuation of the node cannot begin: of a group of it as many others are out as may be."""
    query = (
        select(NodeGroup)
        .join(NodeGroupNode, NodeGroupNode.group_id == NodeGroup.id)
        .where(NodeGroupNode.node_id == node.id)
        .order_by(NodeGroup.name)
        .execution_options(populate_existing=True)
    )
    found = list[Problem]()
    for group in session.scalars(query).all():
        others = [out for out in out_of(session, group.id) if out.node_id != node.id]
        if len(others) >= group.max_at_once:
            found.append(group_full(group, others))
    return tuple(found)


def out_of(session: Session, group_id: int) -> Sequence[Out]:
    """The nodes of a group that are out, by name: their state says so, or an evacuation of them is open. One that the
    end of a window has cancelled is restored next, and open for that.
    """
    is_open = Evacuation.state.in_(OPEN_EVACUATION) | Evacuation.restore_at.is_not(None)
    has_evacuation = and_(Evacuation.node_id == Node.id, is_open)
    query = (
        select(Node.id, Node.name, Node.state, Evacuation.id, Evacuation.state)
        .join(NodeGroupNode, NodeGroupNode.node_id == Node.id)
        .outerjoin(Evacuation, has_evacuation)
        .where(NodeGroupNode.group_id == group_id)
        .where(or_(Node.state != NodeState.ONLINE, Evacuation.id.is_not(None)))
        .order_by(Node.name, Evacuation.id)
    )
    found = {
        node_id: Out(node_id, name, f"{state}" if number is None else f"evacuation {number} is {its_state}")
        for node_id, name, state, number, its_state in session.execute(query)
    }
    return list(found.values())


def group_full(group: NodeGroup, others: Collection[Out]) -> Problem:
    """With these of it out."""
    named = ", ".join(f"{out.node} ({out.why})" for out in others)
    number = f"{len(others)} {'is' if len(others) == 1 else 'are'}"
    words = f"of group {group.name} {group.max_at_once} may be out at once, and {number}: {named}"
    return Problem("group_full", words, f"haulier group set {group.name} --at-once {len(others) + 1}")

"""Groups of nodes of which only few may be out at once."""

from __future__ import annotations

from datetime import datetime

from sqlalchemy import CheckConstraint, ForeignKey
from sqlalchemy.orm import Mapped, mapped_column, relationship

from models.base import Base, Key
from models.inventory import Node


class NodeGroup(Base):
    """Nodes that stand for each other, as those of a rack: no evacuation begins where `max_at_once` of them are out.

    Who decides by that holds the row. Who holds those of several groups takes them in the order of their ids, and
    before those of rolls, evacuations and nodes.
    """

    __tablename__ = "node_group"
    __table_args__ = (CheckConstraint("max_at_once >= 1", name="max_at_once"),)

    id: Mapped[int] = mapped_column(Key, primary_key=True)
    name: Mapped[str] = mapped_column(unique=True)
    max_at_once: Mapped[int] = mapped_column(default=1)
    created_at: Mapped[datetime]

    nodes: Mapped[list[Node]] = relationship(secondary="node_group_node", order_by="Node.name")


class NodeGroupNode(Base):
    """A node of a group. It may be in several."""

    __tablename__ = "node_group_node"

    group_id: Mapped[int] = mapped_column(ForeignKey("node_group.id"), primary_key=True)
    node_id: Mapped[int] = mapped_column(ForeignKey("node.id"), primary_key=True, index=True)

"""Rolls: the nodes of a group are emptied and filled again in turn."""

from __future__ import annotations

from datetime import datetime
from typing import Any

from sqlalchemy import CheckConstraint, ForeignKey
from sqlalchemy.orm import Mapped, mapped_column, relationship

from models.base import Base, Key, only_where, word
from models.enums import RollNodeState, RollState
from models.evacuation import Evacuation
from models.group import NodeGroup
from models.inventory import Node

_OVER = "state IN ('done', 'cancelled')"


class Roll(Base):
    """The wish that each node of a group is emptied and filled again, one after the other.

    `name` is the group's, which may be gone. Each node stays empty for `hold_s`, or until somebody brings its VMs back.
    What is not begun by the `deadline` is left out; at `restore_at` all VMs are brought back by itself. `window_id` is
    the window that has begun it, which may be gone too. `problem` is why it is paused.
    """

    __tablename__ = "roll"
    __table_args__ = (
        only_where("uq_roll_one_open", "group_id", where=f"NOT ({_OVER})"),
        CheckConstraint(f"group_id IS NOT NULL OR {_OVER}", name="open_has_group"),
        CheckConstraint("hold_s >= 0", name="hold"),
    )

    id: Mapped[int] = mapped_column(Key, primary_key=True)
    group_id: Mapped[int | None] = mapped_column(ForeignKey("node_group.id"))
    name: Mapped[str]
    state: Mapped[RollState] = mapped_column(word(RollState), default=RollState.RUNNING)
    hold_s: Mapped[float | None]
    deadline: Mapped[datetime | None]
    restore_at: Mapped[datetime | None]
    window_id: Mapped[int | None]
    problem: Mapped[dict[str, Any] | None]
    created_at: Mapped[datetime]
    finished_at: Mapped[datetime | None]

    group: Mapped[NodeGroup | None] = relationship()
    nodes: Mapped[list[RollNode]] = relationship(back_populates="roll", order_by="RollNode.place")


class RollNode(Base):
    """A node's turn in a roll: its place in the order, and its newest evacuation. `problem` is why it waits, was
    left out, or not all is back; `asked_at` is when it was refused.
    """

    __tablename__ = "roll_node"
    __table_args__ = (CheckConstraint("evacuation_id IS NOT NULL OR state <> 'out'", name="out_by_evacuation"),)

    roll_id: Mapped[int] = mapped_column(ForeignKey("roll.id"), primary_key=True)
    node_id: Mapped[int] = mapped_column(ForeignKey("node.id"), primary_key=True, index=True)
    place: Mapped[int]
    state: Mapped[RollNodeState] = mapped_column(word(RollNodeState), default=RollNodeState.WAITING)
    evacuation_id: Mapped[int | None] = mapped_column(ForeignKey("evacuation.id"))
    asked_at: Mapped[datetime | None]
    problem: Mapped[dict[str, Any] | None]

    roll: Mapped[Roll] = relationship(back_populates="nodes")
    node: Mapped[Node] = relationship()
    evacuation: Mapped[Evacuation | None] = relationship()

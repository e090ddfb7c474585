"""Nodes that are emptied and filled again, and the rules about who is beside whom."""

from __future__ import annotations

from datetime import datetime
from typing import Any

from sqlalchemy import CheckConstraint, ForeignKey, text
from sqlalchemy.orm import Mapped, mapped_column, relationship

from models.base import Base, Key, only_where, word
from models.enums import EvacuationState, NodeState, RuleKind
from models.group import NodeGroup
from models.inventory import Node, Vm

_OPEN = "state NOT IN ('cancelled', 'restored')"


class Evacuation(Base):
    """The wish that all leaves a node, until it has and is back, or nobody wants it any more.

    `cause` is who asked for it, if it was no person. `node_was` is the node's state before. What failed of the
    migrations up to `tried_after` is forgiven. `plans` counts how often VMs were placed. `problem` is the first reason
    why something is not where it is to be. At `restore_at` the VMs are brought back by itself: that is at the latest
    `hold_s` after it was drained, at `drained_at` the last time.
    """

    __tablename__ = "evacuation"
    __table_args__ = (only_where("uq_evacuation_one_open", "node_id", where=_OPEN),)

    id: Mapped[int] = mapped_column(Key, primary_key=True)
    node_id: Mapped[int] = mapped_column(ForeignKey("node.id"))
    state: Mapped[EvacuationState] = mapped_column(word(EvacuationState), default=EvacuationState.PLANNED)
    node_was: Mapped[NodeState] = mapped_column(word(NodeState))
    cause: Mapped[str | None]
    deadline: Mapped[datetime | None]
    restore_at: Mapped[datetime | None]
    hold_s: Mapped[float | None]
    drained_at: Mapped[datetime | None]
    tried_after: Mapped[int] = mapped_column(default=0)
    plans: Mapped[int] = mapped_column(default=0)
    problem: Mapped[dict[str, Any] | None]
    created_at: Mapped[datetime]
    finished_at: Mapped[datetime | None]

    node: Mapped[Node] = relationship()
    vms: Mapped[list[EvacuationVm]] = relationship(back_populates="evacuation", order_by="EvacuationVm.vm_id")


class EvacuationVm(Base):
    """A VM that an evacuation found on its node: where it was sent and why, or the `problem` that keeps it there.

    `is_home`: it was brought back, or nobody is to bring it back any more. Somebody consented at `consent_at` to its
    stop, which is yet to be filed; what failed of the migrations up to `tried_after` is forgiven to it then. Its stop
    was filed at `stopped_at`, and has used the consent up: it is to be started again, with a `problem` where it is.
    """

    __tablename__ = "evacuation_vm"

    evacuation_id: Mapped[int] = mapped_column(ForeignKey("evacuation.id"), primary_key=True)
    vm_id: Mapped[int] = mapped_column(ForeignKey("vm.id"), primary_key=True, index=True)
    target_id: Mapped[int | None] = mapped_column(ForeignKey("node.id"))
    reason: Mapped[str | None]
    problem: Mapped[dict[str, Any] | None]
    is_home: Mapped[bool] = mapped_column(default=False)
    consent_at: Mapped[datetime | None]
    stopped_at: Mapped[datetime | None]
    tried_after: Mapped[int] = mapped_column(default=0, server_default=text("0"))

    evacuation: Mapped[Evacuation] = relationship(back_populates="vms")
    vm: Mapped[Vm] = relationship()
    target: Mapped[Node | None] = relationship()


class MaintenanceWindow(Base):
    """When a node is to be empty, or each node of a group in turn: from `next_at` on for `duration_s`, and again by
    `cron` in the time zone `zone`; without that once. `next_at` is empty when there is no next time.

    With `restore` all is brought back at its end, with `hold_s` so long after a node was drained. `problem` is why
    nothing was begun the last time.
    """

    __tablename__ = "maintenance_window"
    __table_args__ = (
        CheckConstraint("duration_s > 0", name="duration"),
        CheckConstraint("(node_id IS NULL) <> (group_id IS NULL)", name="node_or_group"),
        CheckConstraint("hold_s >= 0", name="hold"),
    )

    id: Mapped[int] = mapped_column(Key, primary_key=True)
    node_id: Mapped[int | None] = mapped_column(ForeignKey("node.id"), index=True)
    group_id: Mapped[int | None] = mapped_column(ForeignKey("node_group.id"), index=True)
    cron: Mapped[str | None]
    zone: Mapped[str]
    duration_s: Mapped[float]
    restore: Mapped[bool] = mapped_column(default=False)
    hold_s: Mapped[float | None]
    next_at: Mapped[datetime | None]
    problem: Mapped[dict[str, Any] | None]
    created_at: Mapped[datetime]

    node: Mapped[Node | None] = relationship()
    group: Mapped[NodeGroup | None] = relationship()


class PlacementRule(Base):
    """What is wished of some VMs whenever a place is chosen for them; one that is not `hard` gives way."""

    __tablename__ = "placement_rule"

    id: Mapped[int] = mapped_column(Key, primary_key=True)
    name: Mapped[str] = mapped_column(unique=True)
    kind: Mapped[RuleKind] = mapped_column(word(RuleKind))
    hard: Mapped[bool] = mapped_column(default=True)
    created_at: Mapped[datetime]

    vms: Mapped[list[Vm]] = relationship(secondary="placement_rule_vm", order_by="Vm.name")
    nodes: Mapped[list[Node]] = relationship(secondary="placement_rule_node", order_by="Node.name")


class PlacementRuleVm(Base):
    """A VM of a rule."""

    __tablename__ = "placement_rule_vm"

    rule_id: Mapped[int] = mapped_column(ForeignKey("placement_rule.id"), primary_key=True)
    vm_id: Mapped[int] = mapped_column(ForeignKey("vm.id"), primary_key=True, index=True)


class PlacementRuleNode(Base):
    """A node of a rule of the kinds `only_on` and `not_on`."""

    __tablename__ = "placement_rule_node"

    rule_id: Mapped[int] = mapped_column(ForeignKey("placement_rule.id"), primary_key=True)
    node_id: Mapped[int] = mapped_column(ForeignKey("node.id"), primary_key=True)

"""Who may call the HTTP API, and the alerts that it is told of."""

from __future__ import annotations

from datetime import datetime
from typing import Any

from sqlalchemy import ForeignKey
from sqlalchemy.orm import Mapped, mapped_column, relationship

from models.base import Base, Key, only_where, word
from models.enums import AlertAction, AlertState, TokenScope
from models.evacuation import Evacuation
from models.inventory import Node


class ApiToken(Base):
    """Somebody who may call the HTTP API. Of the token itself only the SHA-256 is kept: it is 256 bits of chance, which
    nobody finds by trying.
    """

    __tablename__ = "api_token"

    id: Mapped[int] = mapped_column(Key, primary_key=True)
    name: Mapped[str] = mapped_column(unique=True)
    digest: Mapped[str] = mapped_column(unique=True)
    scope: Mapped[TokenScope] = mapped_column(word(TokenScope))
    expires_at: Mapped[datetime | None]
    created_at: Mapped[datetime]


class AlertRule(Base):
    """What is done when an alert of this name fires: `action`, on the node that its `label` names. With `restore` it is
    taken back when the alert is over; with `dry_run` it is only said what would be done.
    """

    __tablename__ = "alert_rule"

    id: Mapped[int] = mapped_column(Key, primary_key=True)
    alertname: Mapped[str] = mapped_column(unique=True)
    action: Mapped[AlertAction] = mapped_column(word(AlertAction))
    label: Mapped[str]
    restore: Mapped[bool] = mapped_column(default=False)
    dry_run: Mapped[bool] = mapped_column(default=False)
    created_at: Mapped[datetime]


class Alert(Base):
    """An alert that a rule was there for, once: Alertmanager says the same again and again, and two of a pair do.

    As long as it is not over it is known by its `fingerprint`: its begin is not always the same. `received` counts how
    often it came. `problem` is why it waits, or why nothing was done. Whose act it is that the node is as it is, say
    `evacuation.cause` and `node.closed_by`.
    """

    __tablename__ = "alert"
    __table_args__ = (only_where("uq_alert_one_firing", "fingerprint", where="state != 'resolved'"),)

    id: Mapped[int] = mapped_column(Key, primary_key=True)
    fingerprint: Mapped[str]
    starts_at: Mapped[datetime]
    alertname: Mapped[str]
    action: Mapped[AlertAction] = mapped_column(word(AlertAction))
    restore: Mapped[bool] = mapped_column(default=False)
    node_id: Mapped[int | None] = mapped_column(ForeignKey("node.id"))
    evacuation_id: Mapped[int | None] = mapped_column(ForeignKey("evacuation.id"), index=True)
    state: Mapped[AlertState] = mapped_column(word(AlertState), index=True)
    problem: Mapped[dict[str, Any] | None]
    received: Mapped[int] = mapped_column(default=1)
    created_at: Mapped[datetime]
    resolved_at: Mapped[datetime | None]

    node: Mapped[Node | None] = relationship()
    evacuation: Mapped[Evacuation | None] = relationship()

    @property
    def node_name(self) -> str | None:
        """The node that it is about, if it is about one."""
        return self.node.name if self.node else None

"""What happened: the ledger of TPM states and the events.

Rows here are added and moved on, never rewritten or deleted.
"""

from __future__ import annotations

from datetime import datetime
from typing import Any

from sqlalchemy import CheckConstraint, ForeignKey, Index
from sqlalchemy.orm import Mapped, mapped_column, relationship

from models.base import Base, Key, only_where, word
from models.enums import LedgerRole
from models.inventory import Node, Vm


class TpmLedger(Base):
    """One copy of a VM's TPM state: where it is, what it is worth, and how to recognise it. Never the state itself.

    `digest` is taken over the state's blobs, `identity` over the public part of the endorsement key; both are hex
    SHA-256.
    """

    __tablename__ = "tpm_ledger"
    __table_args__ = (
        only_where("uq_tpm_ledger_one_active", "vm_id", where="role = 'active'"),
        only_where("uq_tpm_ledger_one_row_a_file", "node_id", "path", where="role <> 'destroyed'"),
        CheckConstraint("role <> 'active' OR identity IS NOT NULL", name="active_has_identity"),
    )

    id: Mapped[int] = mapped_column(Key, primary_key=True)
    vm_id: Mapped[int] = mapped_column(ForeignKey("vm.id"))
    node_id: Mapped[int] = mapped_column(ForeignKey("node.id"))
    path: Mapped[str]
    role: Mapped[LedgerRole] = mapped_column(word(LedgerRole))
    epoch: Mapped[int]
    digest: Mapped[str | None]
    identity: Mapped[str | None]
    swtpm_version: Mapped[str | None]
    libtpms_version: Mapped[str | None]
    keep_until: Mapped[datetime | None]
    changed_at: Mapped[datetime]

    vm: Mapped[Vm] = relationship()
    node: Mapped[Node] = relationship()


class Event(Base):
    """Something that happened, in names rather than keys, so that it can be read after its subjects are gone."""

    __tablename__ = "event"
    __table_args__ = (Index("ix_event_at", "at"),)

    id: Mapped[int] = mapped_column(Key, primary_key=True)
    at: Mapped[datetime]
    kind: Mapped[str]
    vm: Mapped[str | None]
    node: Mapped[str | None]
    migration: Mapped[int | None]
    data: Mapped[dict[str, Any]] = mapped_column(default=dict)

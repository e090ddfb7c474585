"""The tables, their words and their legal moves. Imports nobody; everybody may read it."""

from models.base import Base
from models.enums import (
    AllocationKind,
    Gate,
    LedgerRole,
    LimitScope,
    Locality,
    MigrationState,
    NodeState,
    OperationKind,
    OperationState,
    StepState,
    TransferMethod,
    VmState,
    VolumeRole,
)
from models.inventory import Node, Replica, Replication, Storage, Vm, Volume
from models.journal import Event, TpmLedger
from models.phases import LIVE_CHAIN, OFFLINE_CHAIN, PAUSE_MARKS, SYNC_CHAIN, Phase, PhaseRule, Side, chain_of
from models.session import Database, make_engine
from models.work import IS_AT_WORK, WAITS, Allocation, Attempt, Migration, Operation, QueueLimit, Step, VolumeTransfer

__all__ = [
    "IS_AT_WORK",
    "LIVE_CHAIN",
    "OFFLINE_CHAIN",
    "PAUSE_MARKS",
    "SYNC_CHAIN",
    "WAITS",
    "Allocation",
    "AllocationKind",
    "Attempt",
    "Base",
    "Database",
    "Event",
    "Gate",
    "LedgerRole",
    "LimitScope",
    "Locality",
    "Migration",
    "MigrationState",
    "Node",
    "NodeState",
    "Operation",
    "OperationKind",
    "OperationState",
    "Phase",
    "PhaseRule",
    "QueueLimit",
    "Replica",
    "Replication",
    "Side",
    "Step",
    "StepState",
    "Storage",
    "TpmLedger",
    "TransferMethod",
    "Vm",
    "VmState",
    "Volume",
    "VolumeRole",
    "VolumeTransfer",
    "chain_of",
    "make_engine",
]

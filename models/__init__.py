"""The tables, their words and their legal moves. Imports nobody; everybody may read it."""

from models.base import Base
from models.enums import (
    AllocationKind,
    LedgerRole,
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
from models.work import Allocation, Attempt, Migration, Operation, Step, VolumeTransfer

__all__ = [
    "LIVE_CHAIN",
    "OFFLINE_CHAIN",
    "PAUSE_MARKS",
    "SYNC_CHAIN",
    "Allocation",
    "AllocationKind",
    "Attempt",
    "Base",
    "Database",
    "Event",
    "LedgerRole",
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

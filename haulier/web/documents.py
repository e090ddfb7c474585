"""What the API answers, as contract.md has it: the same documents as `haulier … --json` prints.

A test holds these against what the use-cases give, key by key.
"""

from __future__ import annotations

from typing import Any

from pydantic import BaseModel

from haulier.planner.placing.loads import Load
from models import AlertAction, EvacuationPolicy, EvacuationState, NodeState, VmState, VolumeRole


class Storage(BaseModel):
    """A storage of a node."""

    name: str
    kind: str
    path: str
    pool: str | None
    shared: bool


class Node(BaseModel):
    """A node; one whose `worker` is silent was not heard for a while."""

    name: str
    state: NodeState
    worker: str
    address: str
    ports: str
    network: str
    max_out: int | None
    max_in: int | None
    max_moves_out: int | None
    max_moves_in: int | None
    bandwidth_out_bytes_per_s: int | None
    bandwidth_in_bytes_per_s: int | None
    vms: int
    ram_bytes: int | None
    ram_free_bytes: int | None
    heartbeat_age_s: float | None
    qemu_version: str | None
    accel: str | None
    swtpm_version: str | None
    libtpms_version: str | None
    storages: list[Storage]


class Volume(BaseModel):
    """A volume of a VM."""

    device: str
    role: VolumeRole
    storage: str
    path: str
    format: str | None
    size_bytes: int | None


class Tpm(BaseModel):
    """The state of a VM's TPM as it was proved last; `epoch` counts the VM's owners."""

    identity: str | None
    digest: str | None
    epoch: int


class Vm(BaseModel):
    """A VM on its node."""

    name: str
    node: str
    worker: str
    state: VmState
    run_state: str | None
    epoch: int
    evacuation: EvacuationPolicy
    volumes: list[Volume]
    tpm: Tpm | None
    pinned: dict[str, Any]
    qmp: str | None
    pid: int | None


class Reason(BaseModel):
    """Why something is not, or cannot be."""

    code: str
    message: str
    hint: str


class Hold(BaseModel):
    """The limit that holds a migration back, with its numbers."""

    limit: str
    in_use: int
    allowed: int
    text: str


class Phase(BaseModel):
    """A phase of the newest try of a migration."""

    name: str
    state: str
    side: str
    node: str | None
    seconds: float | None
    progress: dict[str, Any]
    share_bytes_per_s: int | None


class Transfer(BaseModel):
    """How a volume crosses."""

    device: str
    role: str
    method: str
    bytes: int
    bytes_total: int | None
    seconds: float | None


class TpmProof(BaseModel):
    """The digests of the TPM's state on both sides, and whether it is the same TPM."""

    digest_source: str | None
    digest_target: str | None
    identity_same: bool | None


class Try(BaseModel):
    """A try of a migration."""

    number: int
    target: str | None
    started_at: str
    seconds: float | None
    error: Reason | None


class Migration(BaseModel):
    """A migration; its phases and volumes are those of its newest try."""

    id: int
    vm: str
    source: str
    target: str
    state: str
    priority: int
    label: str | None
    waiting_for: Hold | None
    phases: list[Phase]
    volumes: list[Transfer]
    downtime_ms: float | None
    pause: dict[str, float]
    total_s: float | None
    ram_bytes: int | None
    tpm: TpmProof | None
    attempt: int
    tries: int
    attempts: list[Try]
    kind: str
    generation: int | None
    error: Reason | None
    errors: list[Reason]


class Held(Reason):
    """A VM that is not where it is to be, and why."""

    vm: str
    now_on: str | None = None


class Move(BaseModel):
    """A VM, where it goes and why; as long as it is only planned without a migration. `eta_s`: it will be done then, in
    seconds from now; none of one that is done, or held.
    """

    vm: str
    source: str
    target: str
    reason: str | None
    bytes: int | None = None
    migration: int | None = None
    state: str | None = None
    now_on: str | None = None
    eta_s: float | None = None


class Plan(BaseModel):
    """What an evacuation would do; it is not begun where there are `refusals`."""

    id: None
    node: str
    state: EvacuationState
    plan: list[Move]
    blocked: list[Held]
    counts: dict[str, int]
    eta_s: float | None
    loads: list[Load]
    spare: list[Reason]
    gap: float | None
    cut_short: bool
    left: list[str]
    refusals: list[Reason]


class EvacuationHead(BaseModel):
    """An evacuation without its VMs; `counts` is of its migrations, by their states."""

    id: int
    node: str
    state: EvacuationState
    cause: str | None
    created_at: str
    finished_at: str | None
    deadline: str | None
    restore_at: str | None
    hold_s: float | None
    drained_at: str | None
    counts: dict[str, int]


class Evacuation(EvacuationHead):
    """An evacuation, or its way back; `again`: it was there already."""

    plan: list[Move]
    blocked: list[Held]
    left: list[str]
    eta_s: float | None
    waiting_for: str
    again: bool = False


class Outcome(BaseModel):
    """What becomes of an alert that was delivered: a word of AlertState, `ignored` where there is no rule for it, or
    `unreadable`.
    """

    alertname: str
    fingerprint: str
    alert: int | None
    node: str | None
    action: AlertAction | None
    outcome: str
    message: str | None
    plan: Plan | None

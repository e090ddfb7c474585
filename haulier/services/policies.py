"""What a VM's own policy says when its node is emptied."""

from __future__ import annotations

from haulier.errors import Problem
from haulier.planner.refusals import STARTED
from models import EvacuationPolicy, Vm

# Of these nobody has tried a target: the VM goes as soon as its policy lets it.
KEPT_BY_POLICY = ("policy_stay", "policy_live")


def kept_by_policy(vm: Vm) -> Problem | None:
    """Why a VM's own policy keeps it where it is; None if it may go."""
    if vm.evacuation is EvacuationPolicy.STAY:
        hint = f"haulier vm set {vm.name} --evacuation offline_if_stopped"
        return Problem("policy_stay", f"VM {vm.name} stays by its policy", hint)
    return None


def may_be_left(vm: Vm) -> bool:
    """Whether its node counts as empty with it there: it does not run, and only while it runs it is to be moved."""
    return vm.state not in STARTED and vm.evacuation is EvacuationPolicy.LIVE


def not_to_begin(vm: Vm) -> Problem | None:
    """Why a move that was filed is not to begin: since then the policy was changed, or the VM stopped."""
    if may_be_left(vm):
        hint = f"haulier vm set {vm.name} --evacuation offline_if_stopped"
        return Problem("policy_live", f"VM {vm.name} does not run, and by its policy is left then", hint)
    return kept_by_policy(vm)

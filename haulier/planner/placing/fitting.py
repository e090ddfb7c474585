"""Whether a guest may run on a host at all, whatever else is there. Pure."""

from __future__ import annotations

from collections.abc import Hashable, Iterator

from haulier.errors import Problem
from haulier.planner.placing.cluster import Guest, Host, Rule, RuleKind
from haulier.planner.refusals import is_older


def unfit(guest: Guest, host: Host, rules: tuple[Rule, ...] = ()) -> Problem | None:
    """The first reason why not, None if there is none. `rules` are those that name the guest."""
    return next(_reasons(guest, host, rules), None)


def _reasons(guest: Guest, host: Host, rules: tuple[Rule, ...]) -> Iterator[Problem]:
    if host.closed:
        yield host.closed
    if host.name in guest.avoids:
        yield guest.avoids[host.name]
    for rule in rules:
        if rule.hard and breaks_by_itself(rule, host.name):
            yield Problem("rule", f"rule {rule.name} keeps it from {host.name}", f"haulier rule show {rule.name}")
    for storage in guest.storages:
        if storage not in host.storages:
            yield Problem("storage_missing", f"{host.name} has no storage {storage}", "Define it there.")
    yield from _programs(guest, host)
    if host.bridges is not None and (missing := guest.bridges - host.bridges):
        yield Problem("bridge_missing", f"{host.name} has no bridge {min(missing)}", "Make it there.")


def kind_of(guest: Guest, rules: tuple[Rule, ...] = ()) -> Hashable:
    """All that `unfit` looks at of a guest: those of one kind may run on the same hosts."""
    return (
        guest.runs,
        frozenset(guest.storages),
        guest.bridges,
        (guest.machine, guest.accel, guest.cpu_model),
        (guest.has_tpm, guest.libtpms),
        tuple(rule.name for rule in rules if rule.hard and rule.hosts),
        # The reasons are its own.
        guest.name if guest.avoids else "",
    )


def breaks_by_itself(rule: Rule, host: str) -> bool:
    """Whether a host is against the rule whoever else is there."""
    match rule.kind:
        case RuleKind.ONLY_ON:
            return host not in rule.hosts
        case RuleKind.NOT_ON:
            return host in rule.hosts
        case _:
            return False


def _programs(guest: Guest, host: Host) -> Iterator[Problem]:
    if guest.machine and host.machines is not None and guest.machine not in host.machines:
        words = f"QEMU on {host.name} has no machine type {guest.machine}"
        yield Problem("machine_unknown", words, "Install a newer QEMU there.")
    if guest.runs and guest.accel and host.accel and guest.accel != host.accel:
        words = f"{host.name} runs guests with {host.accel}, it runs with {guest.accel}"
        yield Problem("accel_differs", words, "Both nodes need the same accelerator.")
    if guest.runs and guest.cpu_model and host.cpu_model and guest.cpu_model != host.cpu_model:
        words = f"it sees its host's own CPU, and that of {host.name} is another: {host.cpu_model}"
        yield Problem("cpu_differs", words, "Give the VM a named CPU model, and start it anew.")
    if guest.has_tpm and not host.has_swtpm:
        yield Problem("swtpm_missing", f"{host.name} has no swtpm that will do", "Install swtpm 0.7 or newer there.")
    if guest.has_tpm and guest.libtpms and host.libtpms and is_older(host.libtpms, guest.libtpms):
        words = f"libtpms on {host.name} is {host.libtpms}, the TPM's state was written by {guest.libtpms}"
        yield Problem("libtpms_older", words, "Upgrade it there.")

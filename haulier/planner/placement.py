"""Which node a VM may go to when nobody names one. Pure."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass


@dataclass(slots=True)
class Host:
    """A node that takes VMs, with what is free on it in bytes, less what it was given already."""

    name: str
    ram_free_bytes: int
    storages: frozenset[str]


def choose_host(
    hosts: Iterable[Host], *, source: str, ram_bytes: int, storages: frozenset[str], but: frozenset[str] = frozenset()
) -> Host | None:
    """The host with the most free RAM that has all the storages and room for the RAM; it is less by that afterwards.

    None if there is none beside the source and those that are excluded.
    """
    fit = [
        host
        for host in hosts
        if host.name != source
        and host.name not in but
        and host.ram_free_bytes >= ram_bytes
        and storages <= host.storages
    ]
    if not fit:
        return None
    chosen = max(fit, key=lambda host: (host.ram_free_bytes, host.name))
    chosen.ram_free_bytes -= ram_bytes
    return chosen

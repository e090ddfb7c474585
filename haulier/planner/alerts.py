"""Which node an alert is about. Pure."""

from __future__ import annotations

from collections.abc import Mapping


def node_of(value: str, nodes: Mapping[str, str]) -> str | None:
    """The node that a label's value names, of these with their addresses; None if it is none, or could be several.

    Prometheus writes `host:port`. A node is meant by its name, by its address, or, where its own name has no domain, by
    the first part of a host's full name.
    """
    host = _without_port(value)
    if host in nodes:
        return host
    by_address = [name for name, address in nodes.items() if address == host]
    if by_address:
        return by_address[0] if len(by_address) == 1 else None
    first = host.partition(".")[0]
    return first if first in nodes else None


def _without_port(value: str) -> str:
    """`[::1]:9100`, `alpha:9100` and `alpha` without what follows the host; an IPv6 address by itself has no port."""
    if value.startswith("["):
        return value[1:].partition("]")[0]
    host, colon, port = value.rpartition(":")
    return host if colon and port.isdigit() and ":" not in host else value

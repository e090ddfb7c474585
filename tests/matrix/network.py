"""Two hosts on one machine: a network namespace each, with a cable between them that can be cut or made bad.

The namespaces belong to processes of ours and are gone when these end. Needs root, `ip` and `nft`.
"""

from __future__ import annotations

import os
import shutil
import subprocess
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass

TOOLS = ("unshare", "nsenter", "ip", "nft")
_TABLE = "haulier"
# Both directions; packets that are dropped on their way out would be errors of the sender instead.
_BAD_CABLE = """
table inet haulier {
    chain input { type filter hook input priority 0; iifname "cable" {drop}; }
}
"""


def is_possible() -> bool:
    """Whether this process may make network namespaces, and has the tools for it."""
    return os.geteuid() == 0 and all(shutil.which(tool) for tool in TOOLS)


@dataclass(frozen=True)
class Host:
    """One namespace with its end of the cable."""

    holder: subprocess.Popen[bytes]
    address: str

    @property
    def prefix(self) -> list[str]:
        """What a command line begins with to run in here."""
        return ["nsenter", f"--net=/proc/{self.holder.pid}/ns/net", "--"]

    def run(self, *words: str, text: str | None = None) -> None:
        """Run a command in here."""
        subprocess.run([*self.prefix, *words], input=text, text=True, check=True, capture_output=True)

    def drop(self, what: str) -> None:
        """Lose arriving packets: `drop` for all of them, or a rule that ends so."""
        self.repair()
        self.run("nft", "-f", "-", text=_BAD_CABLE.replace("{drop}", what))

    def repair(self) -> None:
        """Lose no more."""
        with_table = subprocess.run(
            [*self.prefix, "nft", "list", "table", "inet", _TABLE], check=False, capture_output=True
        )
        if with_table.returncode == 0:
            self.run("nft", "delete", "table", "inet", _TABLE)


@contextmanager
def two_hosts() -> Iterator[tuple[Host, Host]]:
    """Two namespaces with a cable between them."""
    holders: list[subprocess.Popen[bytes]] = []
    try:
        hosts = []
        for address in ("10.99.0.1", "10.99.0.2"):
            # It says a line once it is in its namespace, and ends with its input, however we end.
            words = ["unshare", "--net", "sh", "-c", "echo there; exec cat"]
            holders.append(subprocess.Popen(words, stdin=subprocess.PIPE, stdout=subprocess.PIPE))
            stdout = holders[-1].stdout
            assert stdout is not None
            assert stdout.readline() == b"there\n"
            hosts.append(Host(holders[-1], address))
        one, other = hosts
        ends = ["cable", "netns", str(one.holder.pid)], ["cable", "netns", str(other.holder.pid)]
        _ip("link", "add", *ends[0], "type", "veth", "peer", "name", *ends[1])
        for host in hosts:
            host.run("ip", "addr", "add", f"{host.address}/24", "dev", "cable")
            host.run("ip", "link", "set", "cable", "up")
            host.run("ip", "link", "set", "lo", "up")
        yield one, other
    finally:
        for holder in holders:
            holder.kill()
            holder.communicate()


def _ip(*words: Sequence[str] | str) -> None:
    subprocess.run(["ip", *map(str, words)], check=True, capture_output=True)

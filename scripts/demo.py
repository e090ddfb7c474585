"""`make demo`: from nothing to a proof. A VM with a vTPM and a disk moves to another node and back while its guest
keeps writing.

It runs the commands that a user would run and shows what they print; then it reads the guest's own account, the volumes
and both nodes, and says what held. Exit status 0 only if all of it did. It leaves nothing behind.
"""

from __future__ import annotations

import argparse
import json
import os
import re
import shlex
import shutil
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from rich.console import Console
from rich.table import Table

from haulier.cli.progress import draw
from probe.build import build
from probe.lines import Line, read_lines
from probe.verify import Verdict, verify_logs
from probe.volume import verify_volume
from scripts.leftovers import leftovers_of, processes_of

VM = "web1"
NODES = ("alpha", "beta")
_LINES_BEFORE = 20

_DEFINITION = """\
name: {vm}
memory: 128
cores: 1
machine: q35
virtio0: local:{vm}/disk-0.raw,size=128M
tpmstate0: local:{vm}/tpm.raw,size=4M,version=v2.0
serial0: socket
args: -kernel {probe} -append "tick_us=1000 dirty_mib_s=16"
"""


@dataclass(slots=True)
class Demo:
    """The demo's own stack: everything is in one folder that goes when it ends."""

    state: Path
    console: Console

    def environment(self) -> dict[str, str]:
        # Settings of the user's own must not reach into the demo. TCG, because it works on every machine.
        mine = {key: value for key, value in os.environ.items() if not key.startswith("HAULIER_")}
        return mine | {"HAULIER_STATE": str(self.state), "HAULIER_ACCEL": "tcg"}

    def haulier(self, *words: str, quiet: bool = False) -> None:
        """Run a command as a user would, and show it. Raises CalledProcessError."""
        if not quiet:
            self.console.print(f"[bold]$ haulier {shlex.join(words)}[/bold]")
        command = [sys.executable, "-m", "haulier.cli.main", *words]
        if self.console.record and not quiet:
            done = subprocess.run(command, env=self.environment(), check=True, stdout=subprocess.PIPE, text=True)
            self.console.print(done.stdout.rstrip(), markup=False)
        else:
            subprocess.run(command, env=self.environment(), check=True, stdout=subprocess.DEVNULL if quiet else None)

    def ask(self, *words: str) -> Any:  # noqa: ANN401 - a command's JSON document
        """What a command says in JSON."""
        command = [sys.executable, "-m", "haulier.cli.main", *words, "--json"]
        return json.loads(subprocess.run(command, env=self.environment(), check=True, capture_output=True).stdout)

    def logs(self) -> list[Path]:
        """The serial logs of both nodes."""
        return [path for node in NODES if (path := self.state / "nodes" / node / "vms" / VM / "serial0.log").exists()]

    def lines(self) -> list[Line]:
        """What the guest has said so far, in its order."""
        found, _torn = read_lines([path.read_text(errors="replace") for path in self.logs()])
        return sorted(found, key=lambda line: line.order)


@contextmanager
def demo_stack(console: Console) -> Iterator[Demo]:
    """A stack in a folder of its own; both are gone afterwards, also when the demo failed or was interrupted."""
    state = Path(tempfile.mkdtemp(prefix="haulier-demo-"))
    demo = Demo(state, console)
    try:
        yield demo
    finally:
        demo.haulier("down", "--vms", quiet=True)
        for pid in processes_of(state):
            os.kill(pid, 9)
        shutil.rmtree(state, ignore_errors=True)


def main() -> int:
    """Run the demo. Returns the exit status."""
    parser = argparse.ArgumentParser(description="A live migration there and back, with a proof.")
    parser.add_argument("--picture", type=Path, help="write what is shown into this SVG file")
    options = parser.parse_args()
    console = Console(highlight=False, record=bool(options.picture), width=100 if options.picture else None)
    begun = time.monotonic()
    with demo_stack(console) as demo:
        held = _run(demo)
        state = demo.state
    left = processes_of(state)
    held = held and not left
    console.print(f"ended after {time.monotonic() - begun:.0f} s; processes left: {len(left)}")
    console.print("[bold green]All of it held.[/bold green]" if held else "[bold red]It did NOT hold.[/bold red]")
    if options.picture:
        options.picture.parent.mkdir(parents=True, exist_ok=True)
        drawn = console.export_svg(title="make demo")
        # Rich's drawing asks a stranger's server for its fonts; the reader's own monospaced one does.
        options.picture.write_text(re.sub(r"@font-face \{.*?\}\s*", "", drawn, flags=re.DOTALL))
    return 0 if held else 1


def _run(demo: Demo) -> bool:
    probe = build(Path(".build/probe")).absolute()
    file = demo.state / f"{VM}.conf"
    file.write_text(_DEFINITION.format(vm=VM, probe=probe))
    demo.haulier("up", "--nodes", ",".join(NODES))
    demo.haulier("vm", "define", str(file), "--node", NODES[0])
    demo.haulier("vm", "start", VM)
    before = _wait_for_lines(demo, _LINES_BEFORE)
    demo.haulier("explain", VM, "--to", NODES[1])
    documents = [_migrate(demo, target) for target in reversed(NODES)]
    after = _wait_for_lines(demo, len(demo.lines()) + _LINES_BEFORE)
    return _prove(demo, documents, before, after)


def _wait_for_lines(demo: Demo, count: int) -> Line:
    """Wait until the guest has said so many lines; returns the newest.

    A guest that is silent for a minute has failed.
    """
    deadline = time.monotonic() + 60
    while len(lines := demo.lines()) < count:
        if time.monotonic() > deadline:
            raise SystemExit(f"the guest said {len(lines)} lines only; see {demo.state}")
        time.sleep(0.05)
    return lines[-1]


def _migrate(demo: Demo, target: str) -> dict[str, Any]:
    demo.haulier("migrate", VM, "--to", target, "--wait")
    newest: dict[str, Any] = demo.ask("migration", "list")[0]
    if demo.console.record:
        demo.console.print(draw(newest))
    return newest


def _prove(demo: Demo, documents: list[dict[str, Any]], before: Line, after: Line) -> bool:
    """Collect what speaks for and against, print it, and say whether all of it held."""
    vm = demo.ask("vm", "show", VM)
    left = leftovers_of(demo.state, [vm])
    demo.haulier("vm", "stop", VM)
    verdict = verify_logs(demo.logs())
    disk = verify_volume(Path(vm["volumes"][0]["path"]))
    proofs = [_guest_proof(verdict), *(_tpm_proof(document) for document in documents)]
    proofs += [
        ("TPM counter", f"{before.tpm} before, {after.tpm} after", (after.tpm or 0) > (before.tpm or 0)),
        ("disk counter", f"{before.disk[0]} before, {after.disk[0]} after", after.disk[0] > before.disk[0]),
        ("disk image", f"newest write {disk.sequence}, {len(disk.problems)} problems", disk.ok),
        (
            "the VM",
            f"{vm['state']} on {vm['node']} until it was stopped, epoch {vm['epoch']}",
            vm["state"] == "running",
        ),
        ("left over", "; ".join(left) or "nothing on either node", not left),
    ]
    table = Table(title="Proof", title_justify="left", show_header=False, box=None, pad_edge=False)
    for name, text, ok in proofs:
        table.add_row("[green]✔[/green]" if ok else "[red]✘[/red]", name, text)
    demo.console.print()
    demo.console.print(table)
    for problem in (*verdict.problems, *disk.problems):
        demo.console.print(f"  {problem}", markup=False)
    return all(ok for _, _, ok in proofs)


def _guest_proof(verdict: Verdict) -> tuple[str, str, bool]:
    pause = f"longest pause {verdict.longest_pause_us / 1000:.1f} ms"
    return "the guest", f"{verdict.ticks} ticks, none lost or repeated; {pause}, as the guest saw it", verdict.ok


def _tpm_proof(document: dict[str, Any]) -> tuple[str, str, bool]:
    tpm = document["tpm"]
    same = tpm["digest_source"] == tpm["digest_target"] and tpm["identity_same"]
    digests = (
        f"{tpm['digest_source'][:12]}… on {document['source']}, {tpm['digest_target'][:12]}… on {document['target']}"
    )
    return (
        "TPM digest",
        f"{digests}; pause {document['downtime_ms']:.1f} ms",
        bool(same and document["state"] == "done"),
    )


if __name__ == "__main__":
    sys.exit(main())

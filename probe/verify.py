"""Judges what the probe guest said: was anything lost, and how long did the guest stand still?

Reads serial logs (`verify_logs`, `verify_texts`) and disk volumes (`verify_volume`); `python -m probe.verify`
does both by hand. Standard library only, apart from qemu-img for volumes that are not raw.
"""

from __future__ import annotations

import argparse
import sys
from collections.abc import Sequence
from dataclasses import dataclass
from itertools import pairwise
from pathlib import Path

from probe.lines import Line, read_lines
from probe.volume import VolumeError, VolumeVerdict, verify_volume

__all__ = ["Verdict", "VolumeError", "VolumeVerdict", "verify_logs", "verify_texts", "verify_volume"]

LOSSES = ("tpm_lost", "tpm_err", "disk_lost", "disk_err", "ram_bad")


@dataclass(frozen=True, kw_only=True)
class Verdict:
    """What a set of serial logs says. `ok` means: nothing lost, nothing twice, nothing damaged."""

    ok: bool
    problems: tuple[str, ...]
    boots: tuple[str, ...]
    """Boot ids, oldest first."""
    ticks: int
    """Newest tick of the newest boot."""
    lines: int
    torn: int
    """Pieces of lines that could not be put together; harmless at the end of a boot."""
    tpm: int | None
    """Newest TPM counter; None without a TPM."""
    disk: tuple[int, ...]
    """Newest sequence number of each disk."""
    longest_gap_us: int
    """Longest time between two turns of the guest's loop, pauses included."""
    longest_pause_us: int
    """Longest time that the host's clock went on and the guest's did not."""


def verify_logs(paths: Sequence[Path]) -> Verdict:
    """Judge log files given in the order in which the guest wrote them (source, target, ...).

    Raises:
        OSError: a file cannot be read.
    """
    return verify_texts([path.read_text(encoding="ascii", errors="replace") for path in paths])


def verify_texts(texts: Sequence[str]) -> Verdict:
    """Judge the contents of log files; a VM that went away and came back may have left two parts in one."""
    lines, torn = read_lines(texts)
    boots = _by_boot(lines)
    problems: list[str] = [] if lines else ["no line of the probe guest found"]
    for boot in boots:
        problems += _judge_boot(boot)
    for earlier, later in pairwise(boots):
        problems += _judge_restart(earlier[-1], later[0])
    newest = boots[-1][-1] if boots else None
    ticks = [line for line in lines if line.kind != "boot"]
    return Verdict(
        ok=not problems,
        problems=tuple(problems),
        boots=tuple(boot[0].boot for boot in boots),
        ticks=newest.tick if newest else 0,
        lines=len(lines),
        torn=len(torn),
        tpm=newest.tpm if newest else None,
        disk=newest.disk if newest else (),
        longest_gap_us=max((line.number("gap_us") for line in ticks), default=0),
        longest_pause_us=max((line.number("pause_us") for line in ticks), default=0),
    )


def _by_boot(lines: Sequence[Line]) -> list[list[Line]]:
    """One list per boot, oldest boot first, each in the order of its ticks.

    A boot id begins with the second of the boot; boots within one second stay in the order of the logs.
    """
    boots: dict[str, list[Line]] = {}
    for line in lines:
        boots.setdefault(line.boot, []).append(line)
    return [sorted(boots[boot], key=lambda line: line.order) for boot in sorted(boots, key=lambda boot: boot[:8])]


def _judge_boot(lines: Sequence[Line]) -> list[str]:
    problems = []
    boot = lines[0].boot
    if lines[0].kind != "boot":
        problems.append(f"boot {boot}: its first line is missing (logs incomplete?)")
    problems += _judge_ticks(lines)
    for key in LOSSES:
        worst = max(lines, key=lambda line: line.number(key))
        if worst.number(key):
            problems.append(f"boot {boot}: {key}={worst.number(key)} by tick {worst.tick}")
    problems += [f"boot {boot}: the guest crashed: {line.text}" for line in lines if line.kind == "fault"]
    for earlier, later in pairwise([line for line in lines if line.kind != "fault"]):
        problems += _judge_counters(earlier, later, where=f"boot {boot}: tick {later.tick}")
    return problems


def _judge_ticks(lines: Sequence[Line]) -> list[str]:
    """Numbers must step by exactly `line_every`; only the last line ("off") may come in between."""
    problems = []
    step = lines[0].number("line_every") if lines[0].kind == "boot" else 0
    for earlier, later in pairwise([line for line in lines if line.kind in {"boot", "tick"}]):
        if later.order == earlier.order:
            problems.append(f"boot {later.boot}: tick {later.tick} is there twice: did the guest run on both sides?")
        elif step and later.tick != earlier.tick + step:
            problems.append(f"boot {later.boot}: no line between tick {earlier.tick} and tick {later.tick}")
        step = step or later.tick - earlier.tick
    return problems


def _judge_counters(earlier: Line, later: Line, *, where: str) -> list[str]:
    """Counters never step back, and what was there stays there."""
    problems = []
    if earlier.tpm is not None and (later.tpm is None or later.tpm < earlier.tpm):
        problems.append(f"{where}: TPM counter stepped back from {earlier.tpm} to {_shown(later.tpm)}")
    if len(later.disk) < len(earlier.disk):
        problems.append(f"{where}: {len(earlier.disk)} disks became {len(later.disk)}")
    for index, (before, after) in enumerate(zip(earlier.disk, later.disk, strict=False)):
        if after < before:
            problems.append(f"{where}: disk {index} stepped back from {before} to {after}")
    return problems


def _judge_restart(last: Line, first: Line) -> list[str]:
    """What the earlier boot has reported as written must be found by the next."""
    return _judge_counters(last, first, where=f"restart {first.boot}")


def _shown(value: int | None) -> str:
    return "none" if value is None else str(value)


def summary(verdict: Verdict) -> str:
    """A few lines for people."""
    boots = f"{len(verdict.boots)} boot{'s' if len(verdict.boots) != 1 else ''}"
    disks = ", ".join(map(str, verdict.disk)) or "none"
    lines = [
        f"{'OK' if verdict.ok else 'LOSS'}: {verdict.lines} lines of {boots}, newest tick {verdict.ticks}",
        f"  TPM counter {_shown(verdict.tpm)}, disk sequence {disks}, torn lines {verdict.torn}",
        f"  longest gap {verdict.longest_gap_us / 1000:.1f} ms, longest pause {verdict.longest_pause_us / 1000:.1f} ms",
    ]
    return "\n".join([*lines, *(f"  problem: {problem}" for problem in verdict.problems)])


def _volume_summary(path: Path, verdict: VolumeVerdict) -> str:
    word = "OK" if verdict.ok else "LOSS"
    head = f"{word}: {path}: newest sequence {verdict.sequence}, ring of {verdict.ring} sectors"
    return "\n".join([head, *(f"  problem: {problem}" for problem in verdict.problems)])


def main(arguments: Sequence[str] | None = None) -> int:
    """Print a summary; exit status 0 if all is well, 1 if something was lost, 2 if it could not be judged."""
    parser = argparse.ArgumentParser(prog="probe.verify", description="Judge the probe guest's logs and volumes.")
    parser.add_argument("logs", nargs="+", type=Path, metavar="LOG", help="serial logs in the order of the moves")
    parser.add_argument("--disk", action="append", default=[], type=Path, metavar="IMG", help="a volume, raw or qcow2")
    options = parser.parse_args(arguments)
    try:
        verdict = verify_logs(options.logs)
        volumes = {path: verify_volume(path) for path in options.disk}
    except (OSError, VolumeError) as error:
        print(f"probe.verify: {error}", file=sys.stderr)
        return 2
    print("\n".join([summary(verdict), *(_volume_summary(path, volume) for path, volume in volumes.items())]))
    return 0 if verdict.ok and all(volume.ok for volume in volumes.values()) else 1


if __name__ == "__main__":
    sys.exit(main())

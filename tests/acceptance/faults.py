"""Programs that fail when told to: QEMU and swtpm behind a script each, which looks for a word left for its node."""

from __future__ import annotations

import os
import shutil
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from tests.acceptance.kinds import WORDS, Kinds
from tests.acceptance.waiting import wait_until

# A worker's environment names its node, and its children have the same. Only what is to be the target has `-incoming`.
_QEMU = """#!/bin/sh
case "$*" in
*-incoming*)
    case "$(cat '{folder}'/"$HAULIER_NODE".qemu 2>/dev/null)" in
    open) echo "qemu-system-x86_64: {words}" >&2; exit 1 ;;
    load) set -- "$@" -m size=70000K ;;
    esac ;;
esac
exec {program} "$@"
"""

# `shadow`: what the stream brings goes into a file beside the volume, so that the volume keeps the older copy.
_SWTPM = """#!/bin/sh
case "$(cat '{folder}'/"$HAULIER_NODE".swtpm 2>/dev/null):$*" in
old:*--print-capabilities*) {program} "$@" | sed 's/"version": *"[^"]*"/"version": "0.6.0"/'; exit ;;
open:*--ctrl*) echo "swtpm: {words}" >&2; exit 1 ;;
shadow:*--ctrl*)
    for word; do
        shift
        case "$word" in
        backend-uri=file://*)
            file="${{word#backend-uri=file://}}"
            cp "${{file%%,*}}" '{folder}/shadow'
            word='backend-uri=file://{folder}/shadow,mode=0600' ;;
        esac
        set -- "$@" "$word"
    done ;;
esac
exec {program} "$@"
"""


class FaultPoints:
    """A folder in which named points of the code are armed: haulier/fault_points.py."""

    def __init__(self, folder: Path) -> None:
        self._folder = folder

    @property
    def settings(self) -> dict[str, str]:
        """What a stack must be started with."""
        return {"HAULIER_FAULT_POINTS": str(self._folder)}

    @contextmanager
    def holding(self, point: str) -> Iterator[None]:
        """Whoever comes to this point of the code stays there until the block ends; `wait_held` waits for that."""
        armed, reached = self._folder / point, self._folder / f"{point}.reached"
        reached.unlink(missing_ok=True)
        os.mkfifo(armed)
        # Both ends: who waits there is to see no end of it before something was written.
        pipe = os.open(armed, os.O_RDWR)
        try:
            yield
        finally:
            armed.unlink()
            os.write(pipe, b"go on")
            os.close(pipe)

    def wait_held(self, point: str) -> None:
        """Wait until somebody is held there."""
        wait_until(f"somebody at {point}", (self._folder / f"{point}.reached").exists, every_s=0.02)


class Faults(FaultPoints):
    """The scripts, and where to leave words for them; `kinds` are storages that are no folders."""

    def __init__(self, folder: Path) -> None:
        super().__init__(folder)
        self.kinds = Kinds(folder / "kinds", told=folder)
        self._scripts = {
            "HAULIER_QEMU": self._script("qemu-system-x86_64", _QEMU),
            "HAULIER_SWTPM": self._script("swtpm", _SWTPM),
        }

    @property
    def settings(self) -> dict[str, str]:
        """What a stack must be started with."""
        return {
            **super().settings,
            **self._scripts,
            "PATH": f"{self.kinds.programs}:{os.environ['PATH']}",
            # A guest that dirties faster than this is a while under way, so that something can happen to it.
            "HAULIER_MAX_BANDWIDTH_BYTES_PER_S": str(16 << 20),
        }

    def _script(self, name: str, text: str) -> str:
        path = self._folder / name
        path.write_text(text.format(folder=self._folder, words=WORDS, program=shutil.which(name)))
        path.chmod(0o755)
        return str(path)

    @contextmanager
    def told(self, program: str, node: str, word: str) -> Iterator[None]:
        """Have `program` (qemu, swtpm or one of LVM's) of a node fail in this way inside the block."""
        flag = self._folder / f"{node}.{program}"
        flag.write_text(word)
        try:
            yield
        finally:
            flag.unlink()

    def left(self) -> list[Path]:
        """Words that were not taken back."""
        return [*self._folder.glob("alpha.*"), *self._folder.glob("beta.*")]

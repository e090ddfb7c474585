"""Transcripts of programs, recorded where they run and played back where they do not.

A transcript is a list of runs in their order. Played back, each command must be the recorded one word for word, and
none may be left over.
"""

from __future__ import annotations

import json
from collections.abc import Sequence
from dataclasses import asdict
from pathlib import Path

from haulier.hypervisor.tools import Done, Run


class Recorder:
    """Runs commands by `run`, and keeps what came of them."""

    def __init__(self, run: Run) -> None:
        self.run = run
        self._runs: list[dict[str, object]] = []

    def __call__(self, words: Sequence[str]) -> Done:
        done = self.run(words)
        self._runs.append({"words": list(words), **asdict(done)})
        return done

    def write(self, path: Path) -> None:
        """Leave the transcript in a file."""
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(json.dumps(self._runs, indent=1, ensure_ascii=False) + "\n")


class Player:
    """Answers as the programs did."""

    def __init__(self, path: Path) -> None:
        self._path = path
        self._runs = json.loads(path.read_text())
        self._next = 0

    def __call__(self, words: Sequence[str]) -> Done:
        assert self._next < len(self._runs), f"{self._path.name} has ended, and {list(words)} was asked"
        run = self._runs[self._next]
        assert list(words) == run["words"], f"{self._path.name}, run {self._next}"
        self._next += 1
        return Done(run["status"], run["stdout"], run["stderr"])

    def require_end(self) -> None:
        """All that was recorded was asked."""
        assert self._next == len(self._runs), f"{self._path.name}: {self._runs[self._next]['words']} was not asked"

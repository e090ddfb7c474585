"""Runs several commands in one process: starting Python costs more than most of them, and hundreds are run here.

Reads a JSON list of command lines on standard input, and writes one of [exit status, standard output, standard error].
"""

from __future__ import annotations

import contextlib
import io
import json
import sys
from collections.abc import Sequence

from haulier.cli.main import main


def run(words: Sequence[str]) -> tuple[int, str, str]:
    """Run one command as the entry point would."""
    output, errors = io.StringIO(), io.StringIO()
    with contextlib.redirect_stdout(output), contextlib.redirect_stderr(errors):
        try:
            main([*words, "--json"])
        except SystemExit as ended:
            return int(ended.code or 0), output.getvalue(), errors.getvalue()
    raise AssertionError(f"haulier {' '.join(words)} did not leave with an exit status")


if __name__ == "__main__":
    sys.stdout.write(json.dumps([run(words) for words in json.load(sys.stdin)]))

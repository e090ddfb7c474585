"""What the commands print: one JSON document, or text for people; errors in one form.

Progress and errors go to standard error.
"""

from __future__ import annotations

import json
import re
import sys
from collections.abc import Mapping, Sequence
from typing import Any

from rich.console import Console
from rich.table import Table

from haulier.errors import HaulierError, Problem, Refused

# In a pipe or a file nobody sees where a line ends: a row of a table is one there, however long.
_WIDE = 1000
_PARTS = re.compile(r"(\d\d-\d\dT\d\d:\d\d:\d\d)\.\d{1,6}")
stdout = Console(highlight=False, width=None if sys.stdout.isatty() else _WIDE)
stderr = Console(stderr=True, highlight=False)


class Mode:
    """Whether this run speaks JSON; set once, before the first word."""

    json = False


def show(document: Any, text: Any = None) -> None:  # noqa: ANN401 - whatever JSON can hold, whatever rich can print
    """Print a command's result: the document as JSON, or `text` for people."""
    if Mode.json:
        print(json.dumps(document, default=str))  # noqa: T201 - this is the command's output
    elif text is not None:
        stdout.print(text, soft_wrap=isinstance(text, str), markup=False)


def show_text(text: Any) -> None:  # noqa: ANN401
    """Print something that only people are to see."""
    if not Mode.json:
        stdout.print(text, soft_wrap=isinstance(text, str), markup=False)


def table(rows: Sequence[Mapping[str, Any]], columns: Mapping[str, str]) -> Table | str:
    """Rows as a table: `columns` maps a heading to a row's key."""
    if not rows:
        return "none"
    drawn = Table(box=None, pad_edge=False, header_style="bold")
    for heading in columns:
        drawn.add_column(heading, overflow="fold")
    for row in rows:
        drawn.add_row(*(_cell(row.get(key)) for key in columns.values()))
    return drawn


def _cell(value: object) -> str:
    if value is None:
        return "-"
    # Of a moment nobody reads parts of seconds.
    return f"{value:.1f}" if isinstance(value, float) else _PARTS.sub(r"\1", str(value))


def fail(error: HaulierError) -> None:
    """Print an error: in JSON on standard output, for people on standard error, a line for each reason."""
    problems = error.problems if isinstance(error, Refused) else (error.problem,)
    if Mode.json:
        first = problems[0].as_dict()
        everything = [problem.as_dict() for problem in problems]
        print(json.dumps({**first, "error": first, "errors": everything}))  # noqa: T201
    for problem in problems:
        complain(problem)


def complain(problem: Problem) -> None:
    """One problem on standard error: a line with its code, and a line that says what to do."""
    print(f"error[{problem.code}]: {problem.message}", file=sys.stderr)  # noqa: T201
    if problem.hint:
        print(f"  hint: {problem.hint}", file=sys.stderr)  # noqa: T201


def size(number: int | float | None) -> str:
    """Bytes for people."""
    if number is None:
        return "-"
    value = float(number)
    for unit in ("B", "KiB", "MiB", "GiB"):
        if round(value, 1) < 1024:
            return f"{value:.0f} {unit}" if unit == "B" else f"{value:.1f} {unit}"
        value /= 1024
    return f"{value:.1f} TiB"


def rate(bytes_per_s: int | float | None) -> str:
    """Bytes per second for people."""
    return f"{size(bytes_per_s)}/s"

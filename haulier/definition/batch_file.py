"""What a batch file says: TOML, CSV or JSON lines, each entry with its line. Pure: text in, entries out."""

from __future__ import annotations

import csv
import io
import json
import re
import tomllib
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from datetime import UTC, datetime
from typing import Annotated, Any

from pydantic import AfterValidator, BaseModel, BeforeValidator, ConfigDict, Field, ValidationError

from haulier.errors import Problem, Refused, meant

# The target that leaves the choice to Haulier.
AUTO = "auto"
# A file of more lines is a mistake, or is better cut into some.
MOST_ENTRIES = 10_000
# Nobody reads more reasons than this at once.
MOST_PROBLEMS = 100
_LONGEST_NUMBER = 12
_HEAD = re.compile(r"\s*\[\[\s*migration\s*\]\]")


@dataclass(frozen=True, slots=True)
class BatchEntry:
    """One migration of a batch; `after` are VMs of the same batch that must have been moved before."""

    line: int
    vm: str
    target: str
    priority: int | None
    after: tuple[str, ...]
    deadline: datetime | None
    label: str | None = None


@dataclass(frozen=True, slots=True)
class BatchFile:
    """What a file says, without a look at what there is. `name` and `policy` only a TOML has.

    `chosen`: it is no file, but VMs that were chosen by where they are. `problems` are of the entries that cannot be
    read, `unread` the VMs of these, as far as they are known.
    """

    entries: tuple[BatchEntry, ...]
    name: str | None = None
    policy: str | None = None
    chosen: bool = False
    problems: tuple[Problem, ...] = ()
    unread: frozenset[str] = frozenset()


def _words(value: object) -> object:
    if value is None:
        return []
    return [word for word in re.split(r"[\s;,]+", value) if word] if isinstance(value, str) else value


def _number(value: object) -> object:
    if isinstance(value, (bool, float)) or (isinstance(value, (str, int)) and len(str(value)) > _LONGEST_NUMBER):
        raise ValueError("a whole number of a few digits is wanted")
    return _nothing(value)


def _moment(value: object) -> object:
    """Numbers would be taken as seconds since 1970."""
    if isinstance(value, (int, float)):
        raise ValueError("a moment is wanted, such as 2026-12-01T04:00:00Z")  # noqa: TRY004 - pydantic's way
    return _nothing(value)


def _printable(value: str) -> str:
    if not value.isprintable():
        raise ValueError("there is a character in it that cannot be printed")
    return value


Name = Annotated[str, Field(min_length=1), AfterValidator(_printable)]


def _nothing(value: object) -> object:
    """An empty cell of a CSV says nothing."""
    return None if isinstance(value, str) and not value.strip() else value


class _Entry(BaseModel):
    model_config = ConfigDict(extra="forbid", str_strip_whitespace=True)

    vm: Name
    target: Annotated[Name, BeforeValidator(lambda value: AUTO if _nothing(value) is None else value)] = AUTO
    priority: Annotated[int | None, BeforeValidator(_number)] = None
    after: Annotated[list[Name], BeforeValidator(_words)] = []
    deadline: Annotated[datetime | None, BeforeValidator(_moment)] = None
    label: Annotated[Name | None, BeforeValidator(_nothing)] = None


class _Head(BaseModel):
    model_config = ConfigDict(extra="forbid")

    name: Name | None = None
    policy: Name | None = None
    migration: list[dict[str, Any]] = []


def read_batch(text: str, *, form: str) -> BatchFile:
    """Read a batch of the form `toml`, `csv` or `jsonl`; entries that cannot be read are among its `problems`, each
    with its line. Raises Refused for what is no such file.
    """
    head, rows = _Head(), list[tuple[int, object]]()
    problems: list[Problem] = []
    match form:
        case "toml":
            head, rows = _toml(text)
        case "csv":
            rows = list(_csv(text))
        case "jsonl":
            rows = list(_json_lines(text, problems))
        case _:
            raise Refused("bad_batch", f"{form!r} is no form of a batch", "A file .toml, .csv or .jsonl.")
    if len(rows) > MOST_ENTRIES:
        words = f"the file has {len(rows)} migrations, and a batch at most {MOST_ENTRIES}"
        raise Refused("batch_too_long", words, "Submit it in parts.")
    entries = [entry for line, row in rows if (entry := _entry(line, row, problems)) is not None]
    if not entries and not problems:
        raise Refused("batch_empty", "there is no migration in it", "See docs/queue.md.")
    names = {str(row["vm"]).strip() for _, row in rows if isinstance(row, dict) and row.get("vm")}
    unread = frozenset(names - {entry.vm for entry in entries})
    return BatchFile(tuple(entries), head.name, head.policy, problems=tuple(problems), unread=unread)


def refused(problems: Iterable[Problem]) -> Refused:
    """One refusal of all problems, in the order of their lines, as many as anybody reads."""
    problems = sorted(problems, key=_line_of)
    left = len(problems) - MOST_PROBLEMS
    more = [Problem("bad_batch", f"and {left} more", "Mend these first.")] if left > 0 else []
    return Refused.because((*problems[:MOST_PROBLEMS], *more))


def _line_of(problem: Problem) -> int:
    found = re.match(r"line (\d+):", problem.message)
    return int(found[1]) if found else 0


def _toml(text: str) -> tuple[_Head, list[tuple[int, object]]]:
    try:
        head = _Head.model_validate(tomllib.loads(text))
    except ValidationError as error:
        raise Refused.because(tuple(_problem(None, each) for each in error.errors())) from error
    except (ValueError, RecursionError) as error:
        raise Refused("bad_batch", f"no TOML: {_first_line(error)}", "See docs/queue.md.") from error
    lines = [number for number, line in enumerate(text.splitlines(), start=1) if _HEAD.match(line)]
    # Written inline, they have no line of their own.
    lines += [0] * (len(head.migration) - len(lines))
    return head, list(zip(lines, head.migration, strict=False))


def _csv(text: str) -> Iterator[tuple[int, object]]:
    hint = "The first line names the columns: vm,target,priority,after,deadline,label."
    reader = csv.DictReader(io.StringIO(text, newline=""), restval="")
    try:
        names = list(reader.fieldnames or ())
        rows = list(_numbered(reader))
    except csv.Error as error:
        raise Refused("bad_batch", f"line {reader.line_num}: no CSV: {error}", hint) from error
    if "vm" not in names:
        raise Refused("bad_batch", "line 1: there is no column vm", hint)
    if len(set(names)) < len(names):
        raise Refused("bad_batch", "line 1: a column is named twice", hint)
    yield from rows


def _numbered(reader: csv.DictReader[str]) -> Iterator[tuple[int, object]]:
    for row in reader:
        cells = {name: value for name, value in row.items() if name is not None}
        yield reader.line_num, cells if None not in row else {**cells, "": row[None]}


def _json_lines(text: str, problems: list[Problem]) -> Iterator[tuple[int, object]]:
    # Inside a JSON text there may be what `splitlines` takes for the end of a line.
    for number, line in enumerate(text.split("\n"), start=1):
        if not line.strip():
            continue
        try:
            yield number, json.loads(line)
        except (ValueError, RecursionError) as error:
            words = f"line {number}: no JSON: {_first_line(error)}"
            problems.append(Problem("bad_batch", words, "One object on each line."))


def _first_line(error: Exception) -> str:
    return (str(error).splitlines() or ["too much"])[0]


def _entry(line: int, row: object, problems: list[Problem]) -> BatchEntry | None:
    try:
        found = _Entry.model_validate(row)
    except ValidationError as error:
        known = {problem.message.partition(": ")[2] for problem in problems}
        here = [_problem(line, each) for each in error.errors()]
        # A column that is not known is so on each line.
        problems += [
            each for each in here if each.code != "unknown_key" or each.message.partition(": ")[2] not in known
        ]
        return None
    try:
        deadline = _in_utc(found.deadline)
    except OverflowError:
        problems.append(Problem("bad_batch", at_line(line, "deadline: beyond all calendars"), "A moment to come."))
        return None
    return BatchEntry(line, found.vm, found.target, found.priority, tuple(found.after), deadline, found.label)


def _in_utc(moment: datetime | None) -> datetime | None:
    if moment is None:
        return None
    return (moment if moment.tzinfo else moment.replace(tzinfo=UTC)).astimezone(UTC)


def _problem(line: int | None, error: Any) -> Problem:  # noqa: ANN401 - pydantic's own form
    where, kind = ".".join(str(part) for part in error["loc"]), str(error["type"])
    code, hint, known = "bad_batch", "See docs/queue.md.", (_Head if line is None else _Entry).model_fields
    match kind.partition("_")[0]:
        case "extra" if where:
            code, words = "unknown_key", f"{where} is not known"
            hint = meant(where, known) or f"Known are {', '.join(known)}."
        case "extra":
            words, hint = "there are more cells than columns", "The first line names the columns."
        case "int":
            words, hint = f"{where}: {error['input']!r} is no whole number", "For example 50."
        case "missing":
            words, hint = f"{where} is missing", "Each migration names its vm."
        case "string" if kind == "string_too_short":
            words = f"{where} is empty"
        case "string":
            words = f"{where}: {error['input']!r} is no text"
        case "datetime":
            words, hint = f"{where}: {error['input']!r} is no moment", "Such as 2026-12-01T04:00:00Z."
        case "model" | "dict":
            words = "it is no object of keys and values"
        case _:
            words = f"{where}: {error['msg'].removeprefix('Value error, ')}"
    return Problem(code, words if line is None else at_line(line, words), hint)


def at_line(line: int, words: str) -> str:
    """With the line in front, where there is one."""
    return f"line {line}: {words}" if line else words

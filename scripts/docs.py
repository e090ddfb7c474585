"""Writes the parts of the documentation that are made from the code: phases, states, tables, settings, keys of files.

`python -m scripts.docs` writes them in place, between `<!-- generated: NAME -->` and `<!-- end -->`; with `--check` it
writes nothing and exits with 1 when a page is not what the code says. A new setting or key without a description here
is an error, so that none stays undescribed.
"""

from __future__ import annotations

import argparse
import ast
import re
import sys
from collections.abc import Callable, Iterable, Mapping, Sequence
from enum import Enum, StrEnum
from pathlib import Path
from typing import Any, Literal, get_args, get_origin

from pydantic import BaseModel
from pydantic.fields import FieldInfo
from pydantic_core import PydanticUndefined
from sqlalchemy import CheckConstraint, Column, ForeignKeyConstraint, Index, Table, UniqueConstraint
from sqlalchemy import Enum as SqlEnum

from haulier.definition import proxmox, toml_file
from haulier.definition.storage import KINDS
from haulier.planner.failures import CLASSES, FailureClass
from haulier.planner.methods import SYNC_TABLE, TABLE, Cell
from haulier.planner.recovery import PROGRAM_RULES, STEP_RULES, Rule
from haulier.settings import Settings
from models import LIVE_CHAIN, OFFLINE_CHAIN, PAUSE_MARKS, SYNC_CHAIN, Base, Phase, PhaseRule
from models.transitions import LEDGER, MIGRATION, OPERATION, STEP
from scripts import docs_words as words
from scripts import reliability
from scripts.tables import table
from tests.scenarios.table import TABLE as SCENARIOS

ROOT = Path(__file__).parent.parent
_BLOCK = re.compile(r"(<!-- generated: ([a-z-]+) -->\n).*?(<!-- end -->)", re.DOTALL)


class Undescribed(LookupError):
    """The code has something that no sentence in docs_words.py describes, or a page asks for a block nobody makes."""


def described(sentences: Mapping[str, str], names: Iterable[str], *, what: str) -> None:
    """Raise Undescribed unless exactly these names have a sentence."""
    there = set(names)
    if missing := sorted(there - sentences.keys()):
        raise Undescribed(f"no sentence in scripts/docs_words.py for {what}: {', '.join(missing)}")
    if stale := sorted(sentences.keys() - there):
        raise Undescribed(f"scripts/docs_words.py describes what is no {what}: {', '.join(stale)}")


# --- phases and states ------------------------------------------------------------------------------------------------


def _sentences(node: ast.Module | ast.FunctionDef | ast.AsyncFunctionDef) -> str:
    """The first paragraph of a docstring, on one line."""
    return " ".join((ast.get_docstring(node) or "").partition("\n\n")[0].split())


def _first_sentence(text: str) -> str:
    return re.split(r"(?<=\.)\s", text, maxsplit=1)[0].rstrip(".")


def _phase(phase: Phase) -> tuple[str, str]:
    """What a phase does and what its undo does, in the words of its module."""
    module = ast.parse((ROOT / "tasks" / f"{phase}.py").read_text())
    does = re.sub(rf"^(?:Phase \d+, )?{phase}(?: \(\w+\))?(?:, of a sync)?: ", "", _sentences(module))
    undos = [node for node in module.body if isinstance(node, ast.AsyncFunctionDef) and node.name == "undo"]
    return _first_sentence(does), _first_sentence(_sentences(undos[0])) if undos else "–"


_CHAINS = {"live": LIVE_CHAIN, "offline": OFFLINE_CHAIN, "sync": SYNC_CHAIN}


def phases(*chains: str) -> str:
    """The phase table: one row a phase of these chains, and a column for each of them that has not all."""
    chosen = [phase for phase in Phase if any(_has(name, phase) for name in chains)]
    columns = [name for name in chains if not all(_has(name, phase) for phase in chosen)]
    rows = [
        (
            str(number),
            f"`{phase}`",
            ", ".join(dict.fromkeys(rule.side for name in chains for rule in _CHAINS[name] if rule.phase is phase)),
            *("yes" if _has(name, phase) else "–" for name in columns),
            *_phase(phase),
        )
        for number, phase in enumerate(chosen, start=1)
    ]
    return table(("#", "phase", "runs on", *columns, "does", "undo"), rows)


def _has(chain: str, phase: Phase) -> bool:
    return any(rule.phase is phase for rule in _CHAINS[chain])


_LINES = {False: "-->", True: "-- gate -->"}


def chain(rules: Sequence[PhaseRule]) -> str:
    """The steps of a migration and what each waits for."""
    lines = ["```mermaid", "flowchart TD"]
    lines += [f'    {_node(rule.phase, rule.side)}["{rule.phase}<br>{rule.side}"]' for rule in rules]
    lines += [_arrow(before, rule, line=_LINES[rule.gate]) for rule in rules for before in rule.after]
    lines += [_arrow(partner, rule, line="-. stands by .->") for rule in rules for partner in rule.beside]
    return "\n".join([*lines, "```", ""])


def _node(phase: str, side: str) -> str:
    return f"{phase}_{side}"


def _arrow(before: tuple[str, str], rule: PhaseRule, *, line: str) -> str:
    return f"    {_node(*before)} {line} {_node(rule.phase, rule.side)}"


def marks() -> str:
    """The moments inside the pause."""
    described(words.MARKS, PAUSE_MARKS, what="mark of the pause")
    return table(("moment", "what has happened"), [(f"`{mark}`", words.MARKS[mark]) for mark in PAUSE_MARKS])


def states(moves: Mapping[Any, frozenset[Any]]) -> str:
    """A state diagram of one kind of row; it begins in the first state of the table."""
    order: list[StrEnum] = list(moves)
    lines = ["```mermaid", "stateDiagram-v2", f"    [*] --> {order[0]}"]
    lines += [f"    {before} --> {after}" for before in order for after in sorted(moves[before], key=order.index)]
    lines += [f"    {state} --> [*]" for state in order if not moves[state]]
    return "\n".join([*lines, "```", ""])


# --- tables -----------------------------------------------------------------------------------------------------------


def schema() -> str:
    """All tables, in the order in which they depend on each other."""
    models = {mapper.class_.__tablename__: mapper.class_ for mapper in Base.registry.mappers}
    return "\n".join(_schema_of(each, models[each.name]) for each in Base.metadata.sorted_tables)


def _schema_of(each: Table, model: type) -> str:
    text = " ".join((model.__doc__ or "").split())
    rows = [_column(column) for column in each.columns]
    rules = [f"* {rule}\n" for rule in _rules(each)]
    columns = table(("column", "type", "empty?", "points at"), rows)
    return "".join([f"### {each.name}\n\n{text}\n\n", columns, "\n" * bool(rules), *rules])


def _column(column: Column[Any]) -> tuple[str, str, str, str]:
    kind = (
        f"one of {', '.join(f'`{w}`' for w in column.type.enums)}"
        if isinstance(column.type, SqlEnum)
        else _type(column)
    )
    points = ", ".join(key.target_fullname for key in sorted(column.foreign_keys, key=lambda key: key.target_fullname))
    return f"`{column.name}`", kind, "may be" if column.nullable else "", points


def _type(column: Column[Any]) -> str:
    name = column.type.__class__.__name__
    names = {"BigInteger": "integer", "String": "text", "UtcDateTime": "moment", "JSON": "JSON", "Boolean": "boolean"}
    return names.get(name, name.lower()) + (", key" if column.primary_key else "")


def _rules(each: Table) -> list[str]:
    """Constraints and indexes in words; the checks that only repeat an enum are left out."""
    rules = []
    for constraint in sorted(each.constraints, key=lambda constraint: str(constraint.name)):
        if isinstance(constraint, UniqueConstraint):
            rules.append(f"unique: {_names(constraint.columns)}")
        elif isinstance(constraint, CheckConstraint) and not getattr(constraint, "_type_bound", False):
            rules.append(f"check `{constraint.name}`: `{constraint.sqltext}`")
        elif isinstance(constraint, ForeignKeyConstraint) and len(constraint.elements) > 1:
            pointed = ", ".join(f"`{element.target_fullname}`" for element in constraint.elements)
            rules.append(f"together: {_names(constraint.columns)} point at {pointed}")
    return [*rules, *(_index(index) for index in sorted(each.indexes, key=lambda index: str(index.name)))]


def _index(index: Index) -> str:
    where = index.dialect_options["postgresql"]["where"]
    kind = "unique" if index.unique else "index"
    return f"{kind} `{index.name}`: {_names(index.columns)}" + (f", where `{where}`" if where is not None else "")


def _names(columns: Iterable[Column[Any]]) -> str:
    return ", ".join(f"`{column.name}`" for column in columns)


# --- settings and files -----------------------------------------------------------------------------------------------


def settings() -> str:
    """Every setting with its values and its default."""
    described(words.SETTINGS, Settings.model_fields, what="setting")
    rows = [
        (f"`HAULIER_{name.upper()}`", _values(field), _default(field), words.SETTINGS[name])
        for name, field in Settings.model_fields.items()
    ]
    return table(("variable", "values", "default", "meaning"), rows)


_KINDS: Mapping[Any, str] = {
    bool: "`true`, `false`", int: "whole number", float: "number", str: "text", Path: "path"
}  # fmt: skip


def _values(field: FieldInfo) -> str:
    """What a setting may be; of an optional one what it may be when it is given."""
    kind: Any = field.annotation
    if get_origin(kind) is not Literal:
        kind = next((part for part in get_args(kind) if part is not type(None)), kind)
    return ", ".join(f"`{value}`" for value in get_args(kind)) if get_origin(kind) is Literal else _KINDS[kind]


def _default(field: FieldInfo) -> str:
    value = field.get_default(call_default_factory=True, validated_data={})
    if value is PydanticUndefined or value is None or value in ("", []):
        return "–"
    if isinstance(value, bool):
        return f"`{str(value).lower()}`"
    shown = value.value if isinstance(value, Enum) else f"{value:g}" if isinstance(value, float) else str(value)
    return f"`{shown.replace(str(Path.home()), '~')}`"


def toml_keys() -> str:
    """The keys of Haulier's own file form, table by table."""
    parts = []
    for title, model, sentences in (
        ("At the top of the file", toml_file.VmTable, words.TOML_VM),
        ("`[[disk]]`", toml_file.DiskTable, words.TOML_DISK),
        ("`[[nic]]`", toml_file.NicTable, words.TOML_NIC),
        ("`[tpm]`", toml_file.TpmTable, words.TOML_TPM),
        ("`[efi]`", toml_file.EfiTable, words.TOML_EFI),
    ):
        parts.append(f"#### {title}\n\n{_keys(model, sentences)}")
    return "\n".join(parts)


def _keys(model: type[BaseModel], sentences: Mapping[str, str]) -> str:
    described(sentences, model.model_fields, what=f"key of {model.__name__}")
    rows = [(f"`{name}`", _default(field), sentences[name]) for name, field in model.model_fields.items()]
    return table(("key", "default", "meaning"), rows)


def conf_keys() -> str:
    """The keys of a Proxmox VE guest file that are read."""
    exact = dict.fromkeys(proxmox._EXACT)
    numbered = dict.fromkeys(f"{prefix}N" for prefix in proxmox._BY_PREFIX)
    described(words.CONF, [*exact, *numbered], what="key of a .conf")
    return table(("key", "meaning"), [(f"`{key}`", words.CONF[key]) for key in words.CONF])


def methods() -> str:
    """The method table of the planner."""
    rows = [
        (f"`{role}`", situation.value, _method(cell), cell.reason.format(device="it"))
        for (role, situation), cell in TABLE.items()
    ]
    return table(("role", "situation", "method", "because"), rows)


def replicas() -> str:
    """How volumes reach their replicas."""
    rows = [(f"`{role}`", _method(cell), cell.reason) for role, cell in SYNC_TABLE.items()]
    return table(("role", "method", "because"), rows)


def storage_kinds() -> str:
    """What each kind of storage holds."""
    rows = [
        (
            f"`{kind}`",
            facts.words,
            "a file" if facts.has_files else "a device",
            ", ".join(f"`{form}`" for form in facts.formats),
            "yes" if facts.is_zeroed else "no",
        )
        for kind, facts in KINDS.items()
    ]
    return table(("kind", "the storage is", "a volume is", "formats", "a new one reads as zeroes"), rows)


def failures() -> str:
    """The classes of failures."""
    rows = [
        (f"`{name}`", ", ".join(f"`{code}`" for code in sorted(rule.codes)), rule.then)
        for name, rule in CLASSES.items()
    ]
    return table(("class", "codes", "then"), [*rows, (f"`{FailureClass.LASTING}`", "all others", "it ends")])


def scenarios() -> str:
    """The table that `make scenarios` plays."""
    rows = [
        (row.configuration, row.wish.value, row.happening, row.ends.value, f"`{row.code}`" if row.code else "")
        for row in SCENARIOS
    ]
    return table(("VM", "asked for", "meanwhile", "then", "told"), rows)


def _method(cell: Cell) -> str:
    return f"refused: `{cell.code}`" if cell.code else f"`{cell.method}`"


def recovery(rules: Iterable[Rule[Any]]) -> str:
    """A table of what is done with what is found; the first row that fits is the one."""
    rows = [(str(n), rule.fact, rule.act.value, rule.because) for n, rule in enumerate(rules, start=1)]
    return table(("#", "the fact that decides", "what is done", "because"), rows)


BLOCKS: Mapping[str, Callable[[], str]] = {
    "phases": lambda: phases("live", "offline"),
    "phases-all": lambda: phases("live", "offline", "sync"),
    "chain": lambda: chain(LIVE_CHAIN),
    "chain-offline": lambda: chain(OFFLINE_CHAIN),
    "chain-sync": lambda: chain(SYNC_CHAIN),
    "replicas": replicas,
    "scenarios": scenarios,
    "failures": failures,
    "storage-kinds": storage_kinds,
    "marks": marks,
    "states-migration": lambda: states(MIGRATION),
    "states-step": lambda: states(STEP),
    "states-ledger": lambda: states(LEDGER),
    "states-operation": lambda: states(OPERATION),
    "schema": schema,
    "settings": settings,
    "toml-keys": toml_keys,
    "conf-keys": conf_keys,
    "methods": methods,
    "recovery-steps": lambda: recovery(STEP_RULES),
    "recovery-programs": lambda: recovery(PROGRAM_RULES),
    "matrix-origin": reliability.origin,
    "matrix-summary": reliability.summary,
    "matrix-cells": reliability.cells,
}


# --- pages ------------------------------------------------------------------------------------------------------------


def pages() -> list[Path]:
    """Every page that may hold generated blocks."""
    return [ROOT / "README.md", *sorted((ROOT / "docs").rglob("*.md"))]


def render(text: str) -> str:
    """The page with all its generated blocks made anew. Raises Undescribed for a block that nobody makes."""

    def fill(match: re.Match[str]) -> str:
        begin, name, end = match.groups()
        if name not in BLOCKS:
            raise Undescribed(f"nobody makes the block {name}")
        return f"{begin}\n{BLOCKS[name]()}\n{end}"

    return _BLOCK.sub(fill, text)


def differing() -> list[Path]:
    """The pages that are not what the code says."""
    return [page for page in pages() if render(page.read_text()) != page.read_text()]


def main() -> int:
    """Write or check. Returns the exit status."""
    parser = argparse.ArgumentParser(description="Writes the generated parts of README.md and docs/.")
    parser.add_argument("--check", action="store_true", help="write nothing; exit status 1 if a page differs")
    options = parser.parse_args()
    try:
        pages_to_write = differing()
    except Undescribed as error:
        print(error, file=sys.stderr)
        return 1
    for page in pages_to_write:
        print(f"{page.relative_to(ROOT)} {'is not what the code says: make docs' if options.check else 'written'}")
        if not options.check:
            page.write_text(render(page.read_text()))
    return 1 if options.check and pages_to_write else 0


if __name__ == "__main__":
    sys.exit(main())

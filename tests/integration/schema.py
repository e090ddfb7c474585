"""What the database itself says about its schema, in a form to compare: CHECKs and partial indexes included."""

from __future__ import annotations

import re

from sqlalchemy import Connection, text

Schema = dict[str, str]

_POSTGRESQL = {
    "column": """
        SELECT c.relname || '.' || a.attname, format_type(a.atttypid, a.atttypmod)
               || CASE WHEN a.attnotnull THEN ' not null' ELSE '' END
               || coalesce(' default ' || pg_get_expr(d.adbin, d.adrelid), '') || a.attidentity::text
        FROM pg_attribute a JOIN pg_class c ON c.oid = a.attrelid
        LEFT JOIN pg_attrdef d ON d.adrelid = a.attrelid AND d.adnum = a.attnum
        WHERE c.relnamespace = 'public'::regnamespace AND c.relkind = 'r' AND a.attnum > 0 AND NOT a.attisdropped""",
    "constraint": """
        SELECT conrelid::regclass || '.' || conname, pg_get_constraintdef(oid) || ' validated ' || convalidated
        FROM pg_constraint WHERE connamespace = 'public'::regnamespace""",
    "index": """
        SELECT indrelid::regclass || '.' || c.relname, pg_get_indexdef(indexrelid) || ' valid ' || indisvalid
        FROM pg_index JOIN pg_class c ON c.oid = indexrelid WHERE c.relnamespace = 'public'::regnamespace""",
}


def read_schema(connection: Connection) -> Schema:
    """Every column, constraint and index of the database, each with its definition; what Alembic and SQLite keep for
    themselves is left out.
    """
    read = _read_sqlite if connection.dialect.name == "sqlite" else _read_postgresql
    return {name: definition for name, definition in sorted(read(connection).items()) if "alembic_version" not in name}


def _read_postgresql(connection: Connection) -> Schema:
    rows: Schema = {}
    for kind, query in _POSTGRESQL.items():
        rows |= {f"{kind} {name}": definition for name, definition in connection.execute(text(query))}
    return rows


def _read_sqlite(connection: Connection) -> Schema:
    rows: Schema = {}
    for kind, name, statement in connection.execute(text("SELECT type, name, sql FROM sqlite_master WHERE sql <> ''")):
        if name == "sqlite_sequence":  # SQLite's own count of keys, which can never be dropped
            continue
        if kind == "table":
            rows |= {f"table {name}: {part}": "" for part in table_parts(statement)}
        else:
            rows[f"{kind} {name}"] = _one_line(statement)
    return rows


def table_parts(statement: str) -> list[str]:
    """The columns and constraints inside the brackets of a CREATE TABLE, in no order that matters."""
    body = _one_line(statement[statement.index("(") + 1 : statement.rindex(")")])
    parts, depth, start = [], 0, 0
    for position, letter in enumerate(body):
        depth += (letter == "(") - (letter == ")")
        if letter == "," and depth == 0:
            parts.append(body[start:position].strip())
            start = position + 1
    return [*parts, body[start:].strip()]


def _one_line(statement: str) -> str:
    return re.sub(r"\s+", " ", statement).replace('"', "").strip()

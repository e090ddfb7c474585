"""The fixtures that every folder of tests may use. Each is defined, and told, in tests/fixtures."""

from tests.fixtures.databases import (
    _postgres_template,
    _sqlite_template,
    database_url,
    empty_database_url,
    empty_postgres_url,
    empty_sqlite_url,
    postgres_url,
    sqlite_url,
)
from tests.fixtures.postgres import postgres_cluster

__all__ = [
    "_postgres_template",
    "_sqlite_template",
    "database_url",
    "empty_database_url",
    "empty_postgres_url",
    "empty_sqlite_url",
    "postgres_cluster",
    "postgres_url",
    "sqlite_url",
]

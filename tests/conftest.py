"""The fixtures that every folder of tests may use. Each is defined, and told, in tests/fixtures."""

import hypothesis

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

# How long an example takes says something about the machine, and nothing about the code.
hypothesis.settings.register_profile("haulier", deadline=None)
hypothesis.settings.load_profile("haulier")

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

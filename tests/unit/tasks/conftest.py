"""The world of the services' tests, for the tasks that work by its rows."""

from tests.unit.services.conftest import _engine, database, world, world_template

__all__ = ["_engine", "database", "world", "world_template"]

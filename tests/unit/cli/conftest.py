"""The world of the services' tests, for the commands that show and change its rows."""

from tests.unit.services.conftest import _engine, database, hall, world, world_template

__all__ = ["_engine", "database", "hall", "world", "world_template"]

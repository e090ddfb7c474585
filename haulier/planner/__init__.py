"""Decisions apart from effects: dataclasses in, dataclasses out. No I/O, no clock, no database."""

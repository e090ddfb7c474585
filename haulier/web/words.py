"""What callers may send as names, numbers and moments: what a database can hold, and no more."""

from __future__ import annotations

from datetime import UTC, datetime
from typing import Annotated

from fastapi import Path
from pydantic import AfterValidator, AwareDatetime, BeforeValidator, Field


def _is_text(value: str) -> str:
    """Raise ValueError for a NUL, which PostgreSQL refuses, and for half of a character, which nothing can store."""
    if "\0" in value:
        raise ValueError("a NUL is no character of a name")
    try:
        value.encode()
    except UnicodeEncodeError as error:
        raise ValueError("it is no valid text") from error
    return value


def _in_utc(value: datetime) -> datetime:
    try:
        return value.astimezone(UTC)
    except OverflowError as error:
        raise ValueError("it is too far away") from error


def _is_written(value: object) -> object:
    """Raise ValueError for a number: seconds since 1970 are taken for an interval."""
    if not isinstance(value, str):
        raise ValueError("it is written as 2026-05-01T12:00:00+00:00")  # noqa: TRY004 - what a validator is to raise
    return value


AnyText = Annotated[str, AfterValidator(_is_text)]
Text = Annotated[AnyText, Field(max_length=1000)]
Moment = Annotated[AwareDatetime, BeforeValidator(_is_written), AfterValidator(_in_utc)]
Name = Annotated[Text, Path()]
MOST = (1 << 63) - 1

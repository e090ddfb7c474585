"""Finds the guest's lines in serial logs, whole ones and ones torn by a switch-over. Judges nothing."""

from __future__ import annotations

import re
import zlib
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from functools import cached_property
from itertools import permutations

__all__ = ["Line", "crc_of", "read_lines"]

# A line never holds "HP " but at its start, so a torn one cannot swallow the next.
_WHOLE = re.compile(r"HP (?:(?!HP )[ -~])*? crc=[0-9a-f]{8}")
# The start of a line, or the end of one, be it cut within its checksum; anything else is foreign output.
_PIECE = re.compile(r"H|HP.*|.*crc=[0-9a-f]{8}|H?(?:r?c)?=?[0-9a-f]{1,8}")
_KINDS = {"boot": 0, "tick": 1, "off": 2, "fault": 2}
_LONGEST_PIECE = 600
# Each move leaves two pieces or three; a log with very many is damaged, and trying all pairs would take for ever.
_MOST_PIECES = 60


@dataclass(frozen=True)
class Line:
    """One line with a right checksum. `kind` is boot, tick, off (the guest ended in order) or fault."""

    text: str
    kind: str
    values: dict[str, str] = field(compare=False)

    @cached_property
    def boot(self) -> str:
        """Id of the boot; its first 8 hex digits are the second in which the boot took place."""
        return self.values.get("boot", "")

    @cached_property
    def tick(self) -> int:
        """Number of the tick; 0 for the boot line."""
        return self.number("tick")

    @property
    def order(self) -> tuple[int, int]:
        """Sorts the lines of one boot."""
        return (self.tick, _KINDS[self.kind])

    @property
    def tpm(self) -> int | None:
        """The TPM counter, or None without a TPM."""
        value = self.values.get("tpm", "-")
        return None if value == "-" else int(value)

    @property
    def disk(self) -> tuple[int, ...]:
        """The sequence number of each disk."""
        value = self.values.get("disk", "-")
        return () if value == "-" else tuple(int(part) for part in value.split(","))

    def number(self, key: str) -> int:
        """The number behind `key`, 0 if the line has none."""
        return int(self.values.get(key, "0"))


def crc_of(text: str) -> str:
    """The checksum that belongs behind `text`, which ends with the space before "crc="."""
    return f"{zlib.crc32(text.encode('ascii', errors='replace')):08x}"


def read_lines(texts: Sequence[str]) -> tuple[list[Line], list[str]]:
    """Return all lines of all logs, and the pieces that belong to none.

    A VM can be stopped in the middle of a line; its first half is then in the log of the source and the
    rest in the log of the target. Halves that give a right checksum together count as a whole line.
    """
    lines: list[Line] = []
    pieces: list[str] = []
    for text in texts:
        whole, rest = _split(text)
        lines += whole
        pieces += rest
    joined, left = _join(pieces)
    return lines + joined, left


def _split(text: str) -> tuple[list[Line], list[str]]:
    """Lines of one log, and what else speaks of the guest: all between them but foreign output."""
    lines, pieces, end = [], [], 0
    for match in _WHOLE.finditer(text):
        line = _parse(match[0])
        if line is None:
            continue
        lines.append(line)
        pieces += text[end : match.start()].splitlines()
        end = match.end()
    pieces += text[end:].splitlines()
    return lines, [piece for piece in pieces if len(piece) <= _LONGEST_PIECE and _PIECE.fullmatch(piece)]


def _parse(text: str) -> Line | None:
    body, _, crc = text.rpartition("crc=")
    if not body.startswith("HP ") or crc != crc_of(body):
        return None
    words = body.split()[1:]
    kind = words.pop(0) if words and "=" not in words[0] else "tick"
    values = dict(word.split("=", 1) for word in words if "=" in word)
    return Line(text, kind, values) if kind in _KINDS else None


def _join(pieces: Sequence[str]) -> tuple[list[Line], list[str]]:
    """Try each pair of pieces. What is joined is used up, the remainder of a piece is a piece again."""
    left = list(pieces)
    joined: list[Line] = []
    while (found := _first_match(left)) is not None:
        line, left = found
        joined.append(line)
    return joined, left


def _first_match(pieces: Sequence[str]) -> tuple[Line, list[str]] | None:
    if len(pieces) > _MOST_PIECES:
        return None
    for i, j in permutations(range(len(pieces)), 2):
        if not pieces[i].startswith("H"):
            continue
        for candidate, rest in _candidates(pieces[i], pieces[j]):
            line = _parse(candidate)
            if line is not None:
                others = [piece for k, piece in enumerate(pieces) if k not in (i, j)]
                return line, others + [rest] * bool(rest)
    return None


def _candidates(head: str, tail: str) -> Iterator[tuple[str, str]]:
    """A line the two might make, and what would be over.

    A log that the VM left and came back to holds "first half of X, second half of Y" as one physical line;
    so at most one of the two is such a joint: cut that one at each place, take the other whole.
    """
    for cut in range(1, len(head) + 1):
        yield head[:cut] + tail, head[cut:]
    for cut in range(1, len(tail)):
        yield head + tail[cut:], tail[:cut]

"""Figures for people: medians, tables, and the places in docs/performance.md where they are kept."""

from __future__ import annotations

import os
import re
import statistics
from collections.abc import Sequence
from pathlib import Path

from haulier.hypervisor.facts import qemu_version
from haulier.hypervisor.swtpm import swtpm_facts

PAGE = Path(__file__).parent.parent / "docs" / "performance.md"


def median(values: Sequence[float]) -> float:
    return statistics.median(values)


def spread(values: Sequence[float]) -> str:
    """The range of the middle half."""
    low, _, high = statistics.quantiles(values, n=4, method="inclusive")
    return f"{low:.0f}–{high:.0f}"


def table(head: Sequence[str], rows: Sequence[Sequence[str]]) -> str:
    """A Markdown table; all columns but the first are figures."""
    ruler = ["---", *["---:"] * (len(head) - 1)]
    return "\n".join("| " + " | ".join(cells) + " |" for cells in (head, ruler, *rows))


def machine_facts(samples: int) -> str:
    """What the figures depend on, without a name, a path or a date."""
    return (
        f"QEMU {qemu_version('qemu-system-x86_64')} (TCG), swtpm {swtpm_facts('swtpm').version}, "
        f"{os.cpu_count()} cores, both nodes on one machine; {samples} moves each, taking turns; milliseconds, medians."
    )


def keep(name: str, text: str) -> None:
    """Write a text into the page between the markers of that name. Raises SystemExit when the page has none."""
    page = PAGE.read_text()
    marked = re.compile(rf"(<!-- measured: {name} -->\n).*?(<!-- end -->)", re.DOTALL)
    if not marked.search(page):
        raise SystemExit(f"{PAGE.name} has no place for {name}")
    PAGE.write_text(marked.sub(lambda found: f"{found[1]}\n{text}\n\n{found[2]}", page))

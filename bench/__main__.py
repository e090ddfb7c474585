"""`python -m bench [NAME ...]`: measures, prints, and keeps the figures in docs/performance.md."""

from __future__ import annotations

import argparse
from collections.abc import Callable
from functools import cache
from pathlib import Path

from bench import cures, pause, placing, rebalancing, simulate
from bench.report import keep
from bench.vm import Guest, make_guest


@cache
def _guest() -> Guest:
    return make_guest(Path(".build/probe").absolute())


_BENCHMARKS: dict[str, Callable[[int], str]] = {
    "pause": lambda rounds: pause.measure(_guest(), rounds=rounds),
    "cures": lambda rounds: cures.measure(_guest(), rounds=rounds),
    "queue": lambda _: simulate.measure(),
    "placing": lambda _: placing.measure(),
    "rebalancing": lambda _: rebalancing.measure(),
    "queue-whole": lambda _: simulate.measure_whole(),
    "queue-sqlite": lambda _: simulate.measure(sizes=simulate.SIZES[:2], postgresql=False),
}


# Only if it is asked for: it takes an hour.
_LONG = ("queue-whole",)


def main() -> None:
    """Run the named benchmarks, or all of them."""
    parser = argparse.ArgumentParser(prog="python -m bench", description=__doc__)
    parser.add_argument(
        "names", nargs="*", metavar="NAME", help=f"one of {', '.join(_BENCHMARKS)}; default: all but queue-whole"
    )
    parser.add_argument("--rounds", type=int, default=10, help="moves there and back of each kind (default 10)")
    parser.add_argument("--dry", action="store_true", help="print only; docs/performance.md stays as it is")
    options = parser.parse_args()
    if unknown := set(options.names) - set(_BENCHMARKS):
        parser.error(f"no benchmark is called {', '.join(sorted(unknown))}")
    for name in options.names or [name for name in _BENCHMARKS if name not in _LONG]:
        text = _BENCHMARKS[name](options.rounds)
        print(f"\n{name}\n\n{text}\n", flush=True)
        if not options.dry:
            keep(name, text)


if __name__ == "__main__":
    main()

"""`haulier`: the command line. It reads arguments, calls a use-case, prints what comes back, and nothing else."""

from __future__ import annotations

import sys
from collections.abc import Iterable

from cyclopts import App, CycloptsError
from sqlalchemy.exc import SQLAlchemyError

from haulier import __version__
from haulier.cli import (
    alert,
    batch,
    evacuation,
    events,
    group,
    migration,
    node,
    queue,
    rebalancing,
    replication,
    roll,
    rule,
    token,
    vm,
    window,
)
from haulier.cli.output import Mode, complain, fail
from haulier.errors import HaulierError, NeedsOperator, Problem, Refused

USAGE_STATUS = 64
# As shells know it: 128 and the signal's number.
INTERRUPTED_STATUS = 130

app = App(
    name="haulier",
    help="Migrates running virtual machines, with local disks and vTPMs, between QEMU/KVM hosts.\n\n"
    "Every command takes --json: one JSON document on standard output, nothing else.\n\n"
    "Exit status: 0 done, 1 failed and undone, 2 refused and nothing touched, 3 needs an operator, 64 wrong usage, "
    "130 interrupted.",
    version=__version__,
    help_format="plaintext",
    suppress_keyboard_interrupt=False,
)
# By their places: these load Celery, Alembic and supervisord, which takes longer than most commands run.
app.command("haulier.cli.stack:up", name="up", help="Start the local stack and return when all of it answers.")
app.command("haulier.cli.stack:down", name="down", help="Stop the local stack.")
app.command("haulier.cli.stack:doctor", name="doctor", help="Look whether this machine has all that is needed.")
app.command(events.events)
app.command(migration.explain)
app.command(migration.migrate)
app.command(replication.replicate)
app.command(vm.recover)
app.command(evacuation.evacuate)
app.command(evacuation.restore)
app.command(rebalancing.rebalance)
app.command(vm.app)
app.command(migration.app)
app.command(queue.app)
app.command(batch.app)
app.command(evacuation.app)
app.command(group.app)
app.command(roll.app)
app.command(rule.app)
app.command(window.app)
app.command(replication.app)
app.command(node.app)
app.command(alert.app)
app.command(token.app)


def main(argv: list[str] | None = None) -> None:
    """Run one command and leave with its exit status (contract.md). A traceback that a user sees is a bug."""
    words = list(sys.argv[1:] if argv is None else argv)
    Mode.json = "--json" in words
    sys.exit(_run([word for word in words if word != "--json"]))


def _run(words: list[str]) -> int:
    try:
        status = app(
            words,
            exit_on_error=False,
            print_error=False,
            result_action="return_value",
        )
    except CycloptsError as error:
        complain_usage(str(error), command=error.command_chain or ())
        return USAGE_STATUS
    except HaulierError as error:
        fail(error)
        return 2 if isinstance(error, Refused) else 3 if isinstance(error, NeedsOperator) else 1
    except KeyboardInterrupt:
        complain(Problem("interrupted", "interrupted; what was begun goes on", "haulier migration list"))
        return INTERRUPTED_STATUS
    except SQLAlchemyError as error:
        # The first line: the others are the statement, which carries what it would store.
        first = str(error).strip().splitlines()[0]
        complain(Problem("database_failed", first, "Is the database there, and brought up to date by `haulier up`?"))
        return 1
    except BrokenPipeError:
        return 1
    return status if isinstance(status, int) else 0


def complain_usage(message: str, *, command: Iterable[str] = ()) -> None:
    """Wrong usage, on one line; the hint names the command that was meant."""
    fail(HaulierError("usage", " ".join(message.split()), " ".join(["haulier", *command, "--help"])))


if __name__ == "__main__":
    main()

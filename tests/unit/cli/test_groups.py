"""`haulier group`, `roll`, and what `evacuate` and `window add` know of them: from the words that are typed to those
that are printed.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Iterator
from typing import Any

import pytest

from haulier.cli import around, roll
from haulier.cli import main as cli
from haulier.cli.output import Mode
from haulier.services import evacuations, groups, roll_view
from haulier.services.evacuation_wishes import Wishes
from haulier.services.groups import ROLL_WORDS
from haulier.services.lost_nodes import declare_lost
from models import Evacuation, Node, Roll, Vm
from tests.unit.services.hall import play, state_of
from tests.unit.services.world import World

Run = Callable[..., tuple[int, str, str]]


@pytest.fixture
def run(hall: World, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch) -> Iterator[Run]:
    """Run a command line on the hall: exit status, standard output, standard error."""
    monkeypatch.setattr(around, "bare_context", lambda: hall.context)
    hall.change(Vm, Vm.name != "web", node_id=4)

    def run(line: str) -> tuple[int, str, str]:
        with pytest.raises(SystemExit) as left:
            cli.main(line.split())
        captured = capsys.readouterr()
        Mode.json = False
        assert isinstance(left.value.code, int)
        return left.value.code, captured.out, captured.err

    yield run
    Mode.json = False


@pytest.fixture
def told(run: Run) -> Callable[[str], Any]:
    """The document of a command that is done."""

    def told(line: str) -> Any:
        status, out, err = run(f"{line} --json")
        assert (status, err) == (0, "")
        return json.loads(out)

    return told


def refusal(run: Run, line: str) -> str:
    """The code of what is refused."""
    status, out, err = run(f"{line} --json")
    assert status == 2, (out, err)
    return str(json.loads(out)["code"])


def test_group_is_made_shown_changed_and_removed(run: Run, told: Callable[[str], Any]) -> None:
    assert run("group add rack alpha beta --at-once 2") == (0, "rack: alpha, beta; 2 at once\n", "")
    assert told("group show rack")["nodes"][0] == {"node": "alpha", "state": "online", "out": None}
    assert told("group set rack --at-once 1 --add gamma --add delta --remove alpha")["at_once"] == 1
    (listed,) = told("group list")
    assert [each["node"] for each in listed["nodes"]] == ["beta", "delta", "gamma"]
    assert "beta delta gamma" in run("group list")[1]
    assert "online" in run("group show rack")[1]
    assert refusal(run, "group set rack") == "nothing_to_set"
    assert run("group remove rack") == (0, "removed rack\n", "")
    assert told("group list") == []


def test_group_that_could_not_be_rolled_through_is_refused(run: Run) -> None:
    """Its name would mean something else."""
    commands = {name for name in roll.app if not name.startswith("-")}
    assert commands == ROLL_WORDS
    assert {refusal(run, f"group add {word} alpha") for word in commands} == {"bad_name"}


def test_roll_is_planned_begun_shown_paused_resumed_and_cancelled(
    hall: World, run: Run, told: Callable[[str], Any]
) -> None:
    told("group add rack alpha beta")
    plan = told("roll rack --hold 30m --deadline 2h --plan")
    assert [(each["node"], len(each["plan"]), each["refusals"]) for each in plan["nodes"]] == [
        ("alpha", 1, []),
        ("beta", 0, []),
    ]
    status, out, _ = run("roll rack --plan")
    assert (status, out.splitlines()[0]) == (0, "2 nodes of rack would be emptied in this order, 1 at once")
    assert hall.count(Roll) == 0
    begun = told("roll rack --hold 30m --deadline 2h")
    assert (begun["id"], begun["group"], begun["state"], begun["hold_s"]) == (1, "rack", "running", 1800.0)
    assert begun["nodes"][0] == {"place": 1, "node": "alpha", "state": "draining", "evacuation": 1, "problem": None}
    assert begun["waiting_for"].startswith("alpha: ")
    status, out, _ = run("roll show 1")
    assert (status, out.splitlines()[0]) == (0, "roll 1 of rack: running; 1 draining, 1 waiting")
    assert told("roll pause 1")["state"] == "paused"
    assert "it is paused; haulier roll resume 1" in run("roll rack")[1], "asked twice it is the same"
    assert told("roll resume 1")["state"] == "running"
    assert told("roll cancel 1")["state"] == "cancelled"
    assert [each["id"] for each in told("roll list")] == [1]
    assert "1 draining, 1 waiting" in run("roll list")[1]
    assert refusal(run, "roll pause 1") == "roll_over"
    assert refusal(run, "roll show 7") == "unknown_roll"
    assert refusal(run, "roll rock") == "unknown_group"
    assert refusal(run, "roll rack --hold soon") == "bad_interval"
    assert run("roll")[0] == 64


def test_plan_of_a_roll_names_what_cannot_be_done(hall: World, run: Run) -> None:
    groups.add_group(hall.context, "rack", ["alpha", "beta"])
    hall.silence("beta")
    declare_lost(hall.context, "beta", is_off=True)
    out = run("roll rack --plan")[1]
    assert "node beta was declared lost" in out
    assert "of group rack 1 may be out at once, and 1 is: beta (lost)" in out


def test_roll_that_is_waited_for_says_by_its_status_whether_all_had_their_turn(hall: World, run: Run) -> None:
    groups.add_group(hall.context, "rack", ["beta"])
    run("roll rack --hold 30m")
    evacuations.restore(hall.context, "beta")
    play(hall)
    assert run("roll show 1")[1].startswith("roll 1 of rack: done; 1 done\nwaits for: nothing: it is over\n")
    run("roll rack")
    evacuations.cancel(hall.context, 2, undo=False)
    play(hall)
    status, out, _ = run("roll rack --wait")
    assert status == 3
    assert roll._awaited(hall.context, roll_view.show_roll(hall.context, 2))["state"] == "paused"
    assert "waits for: it is paused: evacuation 2 of beta was cancelled; haulier roll resume 2" in out


def test_node_is_emptied_and_held(hall: World, run: Run, told: Callable[[str], Any]) -> None:
    assert told("evacuate alpha --hold 30m")["hold_s"] == 1800.0
    play(hall)
    assert "all is brought back at 20" in run("evacuation show 1")[1]
    assert refusal(run, "evacuate beta --hold 999999d") == "bad_hold"
    assert (hall.count(Evacuation), state_of(hall, "beta")) == (1, "online")


def test_window_is_of_a_node_or_of_a_group(run: Run, told: Callable[[str], Any]) -> None:
    told("group add rack alpha beta")
    made = told("window add --group rack --at 2h --duration 6h --hold 20m --restore")
    assert (made["node"], made["group"], made["duration_s"], made["hold_s"]) == (None, "rack", 21600.0, 1200.0)
    assert run("window add alpha --at 2h --duration 2h --zone UTC")[1].startswith("window 2 of alpha: 20")
    out = run("window list")[1]
    assert "group rack" in out
    assert "6h, back after 20m or at its end" in out
    for line in ("--at 2h --duration 2h", "alpha --group rack --at 2h --duration 2h", "alpha --duration 2h"):
        assert refusal(run, f"window add {line}") == "bad_window"
    assert run("window add alpha --at 2h")[0] == 64, "without a duration"
    assert run("window remove 1") == (0, "removed window 1 of group rack\n", "")


def test_plan_says_first_that_it_would_be_refused(hall: World, run: Run) -> None:
    hall.change(Node, Node.name != "alpha", state="maintenance")
    status, out, err = run("evacuate alpha --plan")
    head, first, *_ = out.splitlines()
    assert (status, err, head.partition(",")[0]) == (0, "", "0 VMs would leave alpha")
    assert first.startswith("would be refused: web cannot leave: no node takes it: ")
    assert run("evacuate alpha")[2].startswith("error[node_in_maintenance]: web cannot leave: no node takes it: ")


def test_who_has_emptied_a_node_is_told(hall: World, run: Run) -> None:
    evacuations.evacuate(hall.context, "alpha", Wishes(cause="window 1"))
    assert run("evacuation show 1")[1].startswith("evacuation 1 of alpha by window 1: running")
    assert run("evacuation list")[1].splitlines()[1].split()[2:5] == ["running", "window", "1"]


def test_window_of_a_group_that_would_keep_its_nodes_empty_says_so(run: Run) -> None:
    run("group add rack alpha beta")
    line = "window add --group rack --at 2h --duration 6h"
    assert "each node of rack stays empty until haulier restore NODE" in run(line)[1]
    assert "note" not in run(f"{line} --hold 20m")[1]
    assert "note" not in run(f"{line} --restore")[1]

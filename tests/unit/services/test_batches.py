"""Batches: checked as a whole, filed once, begun in order, stopped, paused, resumed and cancelled."""

from __future__ import annotations

import itertools
import json

import pytest
from sqlalchemy import select

from haulier.clock import now
from haulier.definition.batch_file import BatchEntry, BatchFile, read_batch
from haulier.errors import HaulierError, Refused
from haulier.services import batch_filing, batches, migrations
from haulier.services.admission import admit
from haulier.services.limits import LimitChange, set_limits
from haulier.services.queue import list_queue
from models import Attempt, Batch, LimitScope, Migration, Node, Storage, Vm, VmState
from tests.unit.services.world import World, between, neighbour, per_commit, statements

CONTRACT = {"id", "state", "counts", "migrations"}


@pytest.fixture
def world(world: World) -> World:
    """Five VMs on alpha, and a queue in which nothing begins."""
    for name in ("db", "ci", "log", "mail"):
        world.add_vm(name)
    room(world, 0)
    return world


def room(world: World, number: int | None) -> None:
    set_limits(world.context, [LimitChange(LimitScope.CLUSTER, (), number)])


def file_of(*names: str, target: str = "beta", policy: str | None = None, **after: tuple[str, ...]) -> BatchFile:
    entries = (BatchEntry(line, name, target, None, after.get(name, ()), None) for line, name in enumerate(names, 2))
    return BatchFile(tuple(entries), policy=policy)


def submit(world: World, *names: str, **more: object) -> dict[str, object]:
    return batch_filing.submit(world.context, file_of(*names, **more))  # type: ignore[arg-type]


def states(world: World) -> dict[str, str]:
    with world.context.database.read() as session:
        rows = session.execute(select(Vm.name, Migration.state).join(Vm, Vm.id == Migration.vm_id))
        return {row[0]: row[1].value for row in rows}


def end(world: World, vm: str, *, well: bool) -> None:
    """The migration of a VM that is at work is over, whatever it did, and room is looked for."""
    with world.context.database.read() as session:
        query = select(Attempt.id).join(Migration).join(Vm, Vm.id == Migration.vm_id).where(Vm.name == vm)
        attempt = session.scalars(query).one()
    if well:
        its = select(Attempt.migration_id).where(Attempt.id == attempt).scalar_subquery()
        world.change(Migration, Migration.id == its, state="done", finished_at=now())
        world.change(Attempt, Attempt.id == attempt, finished_at=now())
    else:
        held = next(h for message in world.sent if (h := world.claim(message)) and h.attempt_id == attempt)
        world.fail(held)
    world.sent.clear()
    admit(world.context)


def refusals(world: World, file: BatchFile, **more: str) -> list[tuple[str, str]]:
    with pytest.raises(Refused) as caught:
        batch_filing.submit(world.context, file, **more)  # type: ignore[arg-type]
    return [(problem.code, problem.message) for problem in caught.value.problems]


# -- filing -----------------------------------------------------------------------------------------------------------


def test_batch_is_shown_as_the_contract_says(world: World) -> None:
    document = submit(world, "web", "db")
    assert set(document) >= CONTRACT
    assert (document["id"], document["state"], document["counts"]) == (1, "open", {"queued": 2})
    shown = batches.show_batch(world.context, 1)
    assert [(each["vm"], each["state"]) for each in shown["migrations"]] == [("web", "queued"), ("db", "queued")]
    assert batches.list_batches(world.context)[0]["counts"] == {"queued": 2}
    json.dumps(document)
    assert world.kinds("batch.") == ["submitted"]
    assert world.kinds() == ["queued", "queued"]


def test_same_batch_twice_is_one(world: World) -> None:
    first = submit(world, "web", "db")
    again = submit(world, "web", "db")
    assert (first["again"], again["again"], again["id"]) == (False, True, 1)
    assert (world.count(Batch), world.count(Migration)) == (1, 2)


def test_same_batch_twice_at_one_moment_is_one(world: World) -> None:
    with neighbour(world) as other, between(world, "INSERT INTO batch", lambda: submit(other, "web")) as theirs:
        submit(world, "web")
    assert theirs.result()["id"] == 1
    assert (world.count(Batch), world.count(Migration)) == (1, 1)


def test_same_moment_in_another_zone_is_the_same_batch(world: World) -> None:
    texts = ("2027-01-01T04:00:00Z", "2027-01-01T05:00:00+01:00", "2027-01-01T04:00:00")
    files = [read_batch(f'{{"vm": "web", "target": "beta", "deadline": "{text}"}}', form="jsonl") for text in texts]
    assert [batch_filing.submit(world.context, file)["id"] for file in files] == [1, 1, 1]


def test_vms_that_are_chosen_again_are_another_batch(world: World) -> None:
    chosen = batch_filing.select_entries(world.context, node="alpha", tag=None, target="beta")
    first = batch_filing.submit(world.context, chosen)
    batches.cancel(world.context, int(first["id"]), undo=False)
    assert batch_filing.submit(world.context, chosen)["id"] == 2


@pytest.mark.parametrize("key", ["", " "])
def test_empty_key(world: World, key: str) -> None:
    assert refusals(world, file_of("web"), key=key)[0][0] == "bad_batch"


def test_only_node_there_is(world: World) -> None:
    with world.context.database.write() as session:
        alpha, beta = session.scalars(select(Node).order_by(Node.name))
        session.delete(beta.storages[0])
        session.delete(beta)
    assert refusals(world, file_of("web", target="auto", policy="go_on"))[0][0] == "no_target"
    del alpha


def test_key_of_ones_own(world: World) -> None:
    batch_filing.submit(world.context, file_of("web"), key="tonight")
    assert batch_filing.submit(world.context, file_of("db"), key="tonight")["id"] == 1
    assert states(world) == {"web": "queued"}


def test_begins_at_once_if_there_is_room(world: World) -> None:
    room(world, None)
    document = submit(world, "web", "db", "ci", "log", "mail")
    assert document["counts"] == {"running": 4, "queued": 1}, "four may leave a node"


def test_batches_go_side_by_side(world: World) -> None:
    """The second of one stands behind the first of the other, and a single one does not wait for a whole batch."""
    submit(world, "web", "db", "ci")
    submit(world, "log")
    migrations.file_migration(world.context, "mail", target="beta")
    assert [each["vm"] for each in list_queue(world.context)] == ["web", "log", "mail", "db", "ci"]


def test_what_is_wrong_is_told_at_once_and_nothing_is_filed(world: World) -> None:
    world.change(Vm, Vm.name == "db", node_id=select(Node.id).where(Node.name == "beta").scalar_subquery())
    found = refusals(world, file_of("web", "wep", "db", "web", ci=("mail",)))
    assert [code for code, _ in found] == ["unknown_vm", "already_there", "vm_twice"]
    assert all(words.startswith("line ") for _, words in found)
    assert (world.count(Batch), world.count(Migration), world.kinds("batch.")) == (0, 0, [])


def test_refusals_of_single_vms(world: World) -> None:
    """With the usual policy they refuse all of it; else they are filed as refused, and the others go on."""
    migrations.file_migration(world.context, "db", target="beta")
    file = file_of("web", "db")
    assert refusals(world, file) == [("migration_open", "line 3: VM db is already in migration 1")]
    assert world.count(Batch) == 0
    document = batch_filing.submit(world.context, file, policy="go_on")
    assert document["counts"] == {"queued": 1, "refused": 1}
    (refused,) = [each for each in document["migrations"] if each["state"] == "refused"]
    assert (refused["vm"], refused["error"]["code"]) == ("db", "migration_open")


def test_silent_target_is_waited_for(world: World) -> None:
    world.silence("beta")
    assert submit(world, "web")["counts"] == {"queued": 1}


def test_stopped_vm_goes_as_it_is(world: World) -> None:
    world.change(Vm, Vm.name == "web", state=VmState.STOPPED)
    submit(world, "web", "db")
    with world.context.database.read() as session:
        assert list(session.scalars(select(Migration.offline).order_by(Migration.id))) == [True, False]


def test_unknown_policy_files_nothing(world: World) -> None:
    assert refusals(world, file_of("web"), policy="perhaps")[0][0] == "bad_policy"


# -- auto and selectors -----------------------------------------------------------------------------------------------


def add_room(world: World) -> None:
    """Gamma has 3 GiB free, delta 2, and each VM needs one."""
    with world.context.database.write() as session:
        for name, free in (("gamma", 3 << 30), ("delta", 2 << 30)):
            node = Node(
                name=name, address="a", port_first=1, port_last=9, heartbeat_at=now(), facts={"ram_free_bytes": free}
            )
            node.storages.append(Storage(name="local", kind="folder", path=f"/{name}/images"))
            session.add(node)
    world.change(Vm, pinned={"ram_kib": 1 << 20})


def test_target_is_chosen(world: World) -> None:
    add_room(world)
    document = submit(world, "web", "db", "ci", "log", target="auto")
    chosen = [each["target"] for each in document["migrations"]]  # type: ignore[attr-defined]
    assert chosen == ["gamma", "gamma", "delta", "gamma"], "each the one with the most that is left"
    assert world.migration(1).target_auto


def test_many_are_planned_in_portions_and_in_as_many_questions(world: World, monkeypatch: pytest.MonkeyPatch) -> None:
    """Ten thousand entries took a minute, one after the other."""
    world.change(Vm, Vm.name == "ci", state=VmState.STOPPED)
    add_room(world)
    whole, asked = planned_for(world, "web", "db", "ci", "log", "mail")
    monkeypatch.setattr(batch_filing, "_PORTION", 2)
    assert planned_for(world, "web", "db", "ci", "log", "mail")[0] == whole
    volumes, ram = (1 << 30) + (5 << 20), 1 << 30
    assert [size for _, _, size in whole] == [volumes + each for each in (ram, ram, 0, ram, ram)]
    assert planned_for(world, "web", "db")[1] == asked


def planned_for(world: World, *names: str) -> tuple[list[tuple[str, str, int]], int]:
    """Who would go where with how much, and how many statements it took to know that."""
    with world.context.database.read() as session, statements(world) as said:
        planned = batch_filing._plan(world.context, session, file_of(*names, target="auto"), tries=1)
        return [(each.entry.vm, each.wanted.target.name, each.wanted.planned_bytes) for each in planned], len(said)


def test_no_target_fits(world: World) -> None:
    assert refusals(world, file_of("web", target="auto"))[0][0] == "no_target"
    document = submit(world, "web", target="auto", policy="go_on")
    assert document["counts"] == {"refused": 1}


def test_selectors(world: World) -> None:
    with world.context.database.write() as session:
        for vm in session.scalars(select(Vm).where(Vm.name.in_(("db", "ci")))):
            vm.definition = {**vm.definition, "tags": ["rack7"]}

    def chosen(node: str | None, tag: str | None) -> list[str]:
        return [
            entry.vm for entry in batch_filing.select_entries(world.context, node=node, tag=tag, target="beta").entries
        ]

    assert chosen("alpha", None) == ["ci", "db", "log", "mail", "web"]
    assert chosen(None, "rack7") == chosen("alpha", "rack7") == ["ci", "db"]
    assert chosen(None, None) == ["ci", "db", "log", "mail", "web"]
    world.change(Vm, Vm.name == "ci", node_id=select(Node.id).where(Node.name == "beta").scalar_subquery())
    assert chosen(None, "rack7") == ["db"], "the other one is on beta already"
    for node, code in (("beta", "batch_empty"), ("nope", "unknown_node")):
        with pytest.raises(HaulierError) as caught:
            chosen(node, "rack7")
        assert caught.value.code == code


# -- order and failures -----------------------------------------------------------------------------------------------


def test_after(world: World) -> None:
    submit(world, "web", "db", "ci", web=("db", "ci"), db=("ci",))
    room(world, None)
    admit(world.context)
    assert states(world) == {"web": "queued", "db": "queued", "ci": "running"}
    held = {each["vm"]: each["waiting_for"] for each in list_queue(world.context)}
    assert held["db"] == {"limit": "after", "text": "to be moved before: ci", "in_use": None, "allowed": None}
    assert held["web"]["text"] == "to be moved before: ci, db"
    end(world, "ci", well=True)
    assert states(world)["db"] == "running"
    end(world, "db", well=True)
    assert states(world) == {"web": "running", "db": "done", "ci": "done"}


def test_what_comes_after_a_failure_is_refused(world: World) -> None:
    submit(world, "web", "db", "ci", "log", web=("db",), db=("ci",))
    room(world, None)
    admit(world.context)
    end(world, "ci", well=False)
    assert states(world) == {"web": "refused", "db": "refused", "ci": "undone", "log": "running"}
    errors = {each["vm"]: each["error"] for each in batches.show_batch(world.context, 1)["migrations"]}
    assert errors["db"]["code"] == "after_failed"
    assert "ci" in errors["db"]["message"]


def test_too_many_failures_stop_it(world: World) -> None:
    room(world, 1)
    submit(world, "web", "db", "ci", "log", policy="stop_after: 2")
    end(world, "web", well=False)
    assert states(world)["db"] == "running"
    end(world, "db", well=False)
    assert batches.show_batch(world.context, 1)["state"] == "stopped"
    assert (states(world)["ci"], states(world)["log"]) == ("queued", "queued")
    assert list_queue(world.context)[0]["waiting_for"]["text"] == "batch 1 is stopped"
    batches.resume(world.context, 1)
    assert states(world)["ci"] == "running", "failures so far are forgiven"
    end(world, "ci", well=False)
    assert states(world)["log"] == "running", "and one more is not two"
    assert world.kinds("batch.") == ["submitted", "stopped", "open"]


def test_what_comes_after_a_failure_is_no_failure_of_its_own(world: World) -> None:
    room(world, 1)
    submit(world, "web", "db", "ci", "log", policy="stop_after: 2", db=("web",), ci=("web",))
    end(world, "web", well=False)
    assert states(world) == {"web": "undone", "db": "refused", "ci": "refused", "log": "running"}
    assert batches.show_batch(world.context, 1)["state"] == "open"


def test_long_chain_is_refused_some_at_a_time(world: World) -> None:
    names = [f"n{number}" for number in range(60)]
    for name in names:
        world.add_vm(name)
    submit(world, *names, **{name: (before,) for before, name in itertools.pairwise(names)})
    migrations.cancel_migration(world.context, 1)
    with per_commit(world, lambda sql, said: sql.startswith("UPDATE migration") and "refused" in said) as ended:
        admit(world.context)
    assert (sum(ended), max(ended)) == (59, 25)
    assert set(states(world).values()) == {"cancelled", "refused"}


# -- pause, resume, cancel --------------------------------------------------------------------------------------------


def test_pause_and_resume(world: World) -> None:
    submit(world, "web", "db")
    assert batches.pause(world.context, 1)["state"] == "paused"
    room(world, None)
    admit(world.context)
    assert set(states(world).values()) == {"queued"}
    assert batches.resume(world.context, 1)["state"] == "open"
    assert set(states(world).values()) == {"running"}


def test_paused_batch_lets_others_by(world: World) -> None:
    submit(world, "web")
    batches.pause(world.context, 1)
    room(world, 1)
    migrations.file_migration(world.context, "db", target="beta")
    assert states(world) == {"web": "queued", "db": "running"}


@pytest.mark.parametrize("undo", [False, True])
def test_cancel(world: World, *, undo: bool) -> None:
    room(world, 1)
    submit(world, "web", "db")
    document = batches.cancel(world.context, 1, undo=undo)
    assert (document["state"], document["counts"]) == ("cancelled", {"running": 1, "cancelled": 1})
    assert world.migration(1).cancel_asked is undo
    assert world.kinds()[3:] == ["cancelled"] + ["cancel_asked"] * undo
    assert batches.cancel(world.context, 1, undo=undo)["counts"] == document["counts"], "twice is once"
    for change in (batches.pause, batches.resume):
        with pytest.raises(HaulierError) as caught:
            change(world.context, 1)
        assert caught.value.code == "batch_over"


def test_all_is_done(world: World) -> None:
    room(world, None)
    submit(world, "web")
    end(world, "web", well=True)
    assert batches.show_batch(world.context, 1)["state"] == "done"
    for change in (batches.pause, batches.resume, lambda *of: batches.cancel(*of, undo=False)):
        with pytest.raises(HaulierError) as caught:
            change(world.context, 1)
        assert caught.value.code == "batch_over"
    assert batches.show_batch(world.context, 1)["state"] == "done"


@pytest.mark.parametrize("number", [0, 7, -1, 1 << 64])
def test_unknown_batch(world: World, number: int) -> None:
    for ask in (batches.show_batch, batches.pause, batches.resume):
        with pytest.raises(HaulierError) as caught:
            ask(world.context, number)
        assert caught.value.code == "unknown_batch"


def test_batch_says_what_each_waits_for(world: World) -> None:
    submit(world, "web", "db", "log", log=("db",))
    room(world, 1)
    admit(world.context)
    shown = {each["vm"]: each["waiting_for"] for each in batches.show_batch(world.context, 1)["migrations"]}
    assert shown["web"] is None
    assert shown["db"] | {"text": ""} == {"limit": "cluster", "text": "", "in_use": 1, "allowed": 1}
    assert shown["log"]["text"] == "to be moved before: db"


def test_batch_stops_at_a_refusal_and_begins_nobody_in_the_same_breath(world: World) -> None:
    submit(world, "web", "db", "ci", "log", "mail", policy="stop_after: 1")
    with world.context.database.write() as session:
        for vm in session.scalars(select(Vm).where(Vm.name.in_(("web", "db")))):
            # A storage that the target has not.
            vm.node.storages.append(Storage(name=f"ssd-{vm.name}", kind="folder", path=f"/ssd/{vm.name}"))
            vm.volumes[0].storage = vm.node.storages[-1]
    room(world, None)
    admit(world.context)
    assert states(world) == {"web": "refused", "db": "queued", "ci": "queued", "log": "queued", "mail": "queued"}
    assert batches.show_batch(world.context, 1)["state"] == "stopped"


def test_what_cannot_be_read_and_what_cannot_be_is_told_at_once(world: World) -> None:
    """In the order of the lines; whoever comes after an entry that cannot be read has no unknown name."""
    text = "vm,target,deadline,after\nweb,nowhere,,db\ndb,beta,soon,\nwob,beta,,\n"
    with pytest.raises(Refused) as refused:
        batch_filing.submit(world.context, read_batch(text, form="csv"))
    found = [(problem.code, problem.message.partition(":")[0]) for problem in refused.value.problems]
    assert found == [("unknown_node", "line 2"), ("bad_batch", "line 3"), ("unknown_vm", "line 4")]
    assert world.count(Migration) == 0


def test_file_that_is_there_but_for_a_line_that_cannot_be_read_is_not_the_same(world: World) -> None:
    batch_filing.submit(world.context, read_batch("vm,target\nweb,beta\n", form="csv"))
    with pytest.raises(Refused, match="is no whole number"):
        batch_filing.submit(world.context, read_batch("vm,target,priority\nweb,beta,\ndb,beta,high\n", form="csv"))

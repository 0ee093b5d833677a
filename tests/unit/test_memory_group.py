"""Where a group with a limit of memory goes, how it is made, and what the guardian does with one: decided on fake trees."""

from __future__ import annotations

from pathlib import Path

import pytest
from support.guarded import Machine

from actors.errors import RefusedError
from actors.guardian.killing import Killer
from actors.guardian.model import Action, ContainerMade, MakeContainer, Result
from actors.memory_group import MemoryRoot, find, make, of, places
from actors.messages import Capacity, Operation
from actors.simulator import check_here, memory_limit_bytes, peak_amounts
from actors.undo import Record

MIB = 1 << 20
V2, V1 = MemoryRoot(2, "/m/shared"), MemoryRoot(1, "/m/shared")
FAULTS = Operation("0@n", "VmPressure", "n", 0.0, 9.0, "per_second", {"kind": "constant", "level": 10}, {"file": 8 * MIB, "limited": True})


class Tree:
    """A fake /proc and control group tree: version 2 at `unified`, version 1's memory at `memory`."""

    def __init__(self, root: Path, *, own: str, v1: bool = False) -> None:
        self.root = root
        (root / "proc/self").mkdir(parents=True)
        lines, mounts = [f"0::{own}"], [f"30 23 0:26 / {root}/unified rw - cgroup2 cgroup2 rw"]
        if v1:
            lines.append(f"4:memory:{own}")
            mounts.append(f"31 23 0:27 / {root}/memory rw - cgroup cgroup rw,memory")
        (root / "proc/self/cgroup").write_text("\n".join(lines) + "\n")
        (root / "proc/self/mountinfo").write_text("\n".join(mounts) + "\n")
        for tree in ("unified", *(["memory"] if v1 else [])):
            for folder in [root / tree / own.strip("/"), *(root / tree / own.strip("/")).parents]:
                if (root / tree) in (folder, *folder.parents):
                    folder.mkdir(parents=True, exist_ok=True)
                    for name in (
                        ("cgroup.procs", "cgroup.subtree_control") if tree == "unified" else ("cgroup.procs", "memory.limit_in_bytes")
                    ):
                        (folder / name).write_text("")

    def hand_on(self, group: str, controllers: str) -> None:
        (self.root / "unified" / group / "cgroup.subtree_control").write_text(controllers)

    def find(self, *read_only: str) -> MemoryRoot | None:
        return find(self.root / "proc", lambda folder: str(folder.relative_to(self.root)) not in read_only)


def test_the_nearest_group_that_hands_memory_on_is_taken(tmp_path: Path) -> None:
    """From our own group upwards: one that hands it on and that may be written; else none of version 2."""
    tree = Tree(tmp_path, own="/user/session")
    assert tree.find() is None
    tree.hand_on("", "cpu memory pids")
    assert tree.find() == MemoryRoot(2, f"{tmp_path}/unified")
    tree.hand_on("user", "cpu pids")
    assert tree.find() == MemoryRoot(2, f"{tmp_path}/unified")
    tree.hand_on("user", "memory")
    assert tree.find() == MemoryRoot(2, f"{tmp_path}/unified/user")
    assert tree.find("unified/user") == MemoryRoot(2, f"{tmp_path}/unified")
    assert tree.find("unified/user", "unified") is None


def test_where_version_2_has_none_the_tree_of_version_1_is_taken(tmp_path: Path) -> None:
    """Below our own group there, where that may be written."""
    tree = Tree(tmp_path, own="/a", v1=True)
    assert tree.find() == MemoryRoot(1, f"{tmp_path}/memory/a")
    assert tree.find("memory/a") is None
    tree.hand_on("a", "memory")
    assert tree.find() == MemoryRoot(2, f"{tmp_path}/unified/a")


def test_where_an_operations_groups_go() -> None:
    """One group with version 2, two with version 1, no limit without being asked; refused in words where there can be none."""
    assert places("/c", V2, "3-7", 0) == {"path": "/c/3-7"}
    assert places("", None, "3-7", 0) == {"path": ""}
    assert places("/c", V2, "3-7", 64) == {"path": "/m/shared/3-7", "memory_group": "/m/shared/3-7", "memory_limit_bytes": 64}
    assert places("/c", V1, "3-7", 64) == {"path": "/c/3-7", "memory_group": "/m/shared/3-7", "memory_limit_bytes": 64}
    assert of(places("/c", V2, "3-7", 64)) == ["/m/shared/3-7"]
    assert of(places("/c", V1, "3-7", 64)) == ["/c/3-7", "/m/shared/3-7"]
    assert of(places("", V1, "3-7", 64)) == ["/m/shared/3-7"]
    with pytest.raises(RefusedError, match="no control group of memory can be made here") as caught:
        places("/c", None, "3-7", 64)
    assert (caught.value.code, "Delegate" in caught.value.hint) == ("unsupported", True)


@pytest.mark.parametrize("version", [1, 2])
def test_a_group_gets_its_limit(tmp_path: Path, version: int) -> None:
    """As each version names it; the controller is switched on in our own shared folder only; a kernel without the files is an error."""
    fields = places(f"{tmp_path}/c", MemoryRoot(version, f"{tmp_path}/top/shared"), "3-7", 64 * MIB)
    (tmp_path / "top").mkdir()
    with pytest.raises(FileNotFoundError):
        make(fields)
    shared, names = (
        tmp_path / "top/shared",
        ("memory.limit_in_bytes", "memory.swappiness") if version == 1 else ("memory.max", "memory.swap.max"),
    )
    for file in (shared / "cgroup.subtree_control", *(shared / "3-7" / name for name in names)):
        file.parent.mkdir(parents=True, exist_ok=True)
        file.write_text("")
    make(fields)
    assert [(shared / "3-7" / name).read_text() for name in names] == [str(64 * MIB), "0"]
    assert (shared / "cgroup.subtree_control").read_text() == ("+memory" if version == 2 else "")
    assert [path.name for path in (tmp_path / "top").iterdir()] == ["shared"]
    make(places("", None, "3-7", 0))


class Grouped(Machine):
    """A machine on which groups can be made, or on which the kernel refuses them."""

    error: tuple[str, str] | None = None

    def begin(self, root: MemoryRoot | None) -> None:
        self.core._container_root, self.core._memory_root = "/c", root
        self.hello()

    def _do(self, action: Action) -> Result | None:
        if isinstance(action, MakeContainer) and self.error:
            super()._do(action)
            return ContainerMade(action.record.id, "", self.error)
        return super()._do(action)


def test_the_guardian_journals_both_groups_before_it_makes_them() -> None:
    """The record of the container names the limited group, so that whoever comes later removes it; status tells the load where to go."""
    machine = Grouped()
    machine.begin(V1)
    ticket = machine.ticket(memory_limit_bytes=64 * MIB)
    name = f"{ticket['slot']}-{ticket['generation']}"
    (record,) = machine.journal.values()
    assert record.fields["path"] == f"/c/{name}"
    assert (record.fields["memory_group"], record.fields["memory_limit_bytes"]) == (f"/m/shared/{name}", 64 * MIB)
    (slot,) = machine.core.snapshot()["slots"]
    assert slot["memory_group"] == f"/m/shared/{name}"


def test_a_limit_that_cannot_be_had_is_refused() -> None:
    """Nothing is journalled, and the slot goes to the next who asks."""
    machine = Grouped()
    machine.begin(None)
    answer = machine.open(memory_limit_bytes=64 * MIB)
    assert (answer["ok"], answer["code"]) == (False, "unsupported")
    assert "no control group of memory" in answer["message"]
    assert (machine.journal, machine.core.slots) == ({}, ())
    assert machine.open()["ok"]


def test_a_load_never_runs_without_the_limit_that_it_asked() -> None:
    """When the kernel refuses the group, the slot is over, its owner is told why, and what was made of it is undone."""
    machine = Grouped()
    machine.begin(V2)
    machine.error = ("os", "no group of memory for 0@n: Device or resource busy")
    answer = machine.open(memory_limit_bytes=64 * MIB)
    assert (answer["ok"], answer["code"]) == (False, "os")
    assert "busy" in answer["message"]
    machine.run_for(3.0)
    assert (machine.journal, machine.core.slots) == ({}, ())


def test_both_groups_of_a_record_are_removed(tmp_path: Path) -> None:
    """Empty groups go, each with its shared folder; a second time changes nothing."""
    folders = [tmp_path / "c/3-7", tmp_path / "m/3-7"]
    for folder in folders:
        folder.mkdir(parents=True)
    record = Record("r", "container", 3, 7, fields={"path": str(folders[0]), "memory_group": str(folders[1])})
    killer = Killer(lambda *_: None, lambda *_: None)
    assert killer.verify(record).result == "pending"
    assert killer.kill(record).result == "undone"
    assert list(tmp_path.iterdir()) == []
    assert killer.kill(record).result == killer.verify(record).result == "undone"


def test_faults_in_a_group_of_their_own(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    """The limit is what is reserved; where no group can be made the node refuses before anything is reserved."""
    assert memory_limit_bytes(FAULTS) == peak_amounts(FAULTS, Capacity(1.0, 1 << 30, 1 << 30)).memory_bytes == 72 * MIB
    monkeypatch.setattr("actors.memory_group.find", lambda: None)
    with pytest.raises(RefusedError, match="no control group of memory") as caught:
        check_here(FAULTS, tmp_path)
    assert caught.value.code == "unsupported"
    monkeypatch.setattr("actors.memory_group.find", lambda: V1)
    check_here(FAULTS, tmp_path)

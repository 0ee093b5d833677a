"""What of stress-ng may run, with which options, what it reserves, and what its figures say: without stress-ng."""

from __future__ import annotations

import os
import subprocess
import sys
from dataclasses import replace
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from actors import session
from actors.carrier import load_environment
from actors.errors import InputError, RefusedError, StressError
from actors.messages import Amounts, Capacity, Operation
from actors.simulator import check, check_here, peak_amounts
from actors.stress_ng import rules, tree
from actors.stress_ng.record import INSTANCE_BYTES, INSTANCE_TASKS
from actors.stress_ng.rules import EVERYTHING, Figures, Means

MIB = 1 << 20
KNOWN = ("cpu", "cpu-online", "daemon", "fork", "hdd", "msg", "reboot", "vm", "vm-rw", "vm-splice")
CAPACITY = Capacity(4.0, 8 << 30, 8 << 30, tasks=10_000)
VM = Operation(
    "0.StressNg@n",
    "StressNg",
    "n",
    0.0,
    10.0,
    "count",
    {"kind": "steps", "levels": [1, 3, 2], "each_s": 1},
    {"stressor": "vm", "memory_bytes": 100 * MIB, "disk_bytes": MIB, "tasks": 5},
)


@pytest.mark.parametrize(
    ("stressor", "text", "want"),
    [
        pytest.param("cpu", "", [], id="nothing"),
        pytest.param("vm", "--vm-bytes 64M --vm-keep", ["--vm-bytes", "64M", "--vm-keep"], id="its-own"),
        pytest.param("vm-rw", "--vm-rw-bytes=1M", ["--vm-rw-bytes=1M"], id="with-an-equals-sign"),
        pytest.param("hdd", "--hdd-opts 'wr-seq,sync' --verify", ["--hdd-opts", "wr-seq,sync", "--verify"], id="quoted-and-general"),
    ],
)
def test_options_of_the_stressor_are_taken(stressor: str, text: str, want: list[str]) -> None:
    """Options of the stressor, and the few general ones that leave it under control, come out word by word."""
    assert rules.arguments(stressor, text, KNOWN) == want


@pytest.mark.parametrize(
    ("text", "why"),
    [
        pytest.param("--timeout 1h", "only --vm-", id="its-end"),
        pytest.param("-t 1h", "no long option", id="its-end-in-short"),
        pytest.param("--vm-ops 10", "duration says when it ends", id="an-end-by-count"),
        pytest.param("--vm-op 10", "duration says when it ends", id="an-end-by-count-shortened"),
        pytest.param("--vm 8", "only --vm-", id="how-many"),
        pytest.param("--all 1", "only --vm-", id="all-stressors"),
        pytest.param("--cpu 1", "the stressor 'cpu'", id="another-stressor"),
        pytest.param("--vm-rw 1", "the stressor 'vm-rw'", id="another-stressor-of-a-longer-name"),
        pytest.param("--vm-rw-bytes 1M", "the stressor 'vm-rw'", id="an-option-of-a-longer-name"),
        pytest.param("--log-file x", "only --vm-", id="a-file"),
        pytest.param("--temp-path x", "only --vm-", id="a-folder"),
        pytest.param("--yaml x", "only --vm-", id="our-own-figures"),
        pytest.param("--pathological", "only --vm-", id="pathological"),
        pytest.param("--class vm", "only --vm-", id="a-class"),
        pytest.param("--job x", "only --vm-", id="a-job-file"),
        pytest.param("--sched fifo", "only --vm-", id="real-time"),
        pytest.param("--thrash", "only --vm-", id="everybody's-pages"),
        pytest.param("--vm-bytes 1M 2M", "belongs to no option", id="a-stray-word"),
        pytest.param("64M", "belongs to no option", id="no-option"),
        pytest.param("--vm-file /etc/passwd", "names a path", id="a-path"),
        pytest.param("--vm-file=../x", "names a path", id="a-path-behind-an-equals-sign"),
        pytest.param("--vm-bytes '64M", "cannot be read", id="an-open-quote"),
        pytest.param("--", "no long option", id="two-dashes"),
        pytest.param("--vm-bytes\n--timeout", "only --vm-", id="a-new-line-is-a-blank"),
    ],
)
def test_options_that_escape_control_are_refused(text: str, why: str) -> None:
    """What says how long, how many, where, or starts another stressor is refused with its name and the reason."""
    with pytest.raises(InputError) as caught:
        rules.arguments("vm", text, KNOWN)
    assert why in str(caught.value)


@given(
    st.lists(
        st.sampled_from(["--vm-bytes", "--timeout", "--vm-ops", "-t", "64M", "--vm-rw", "--", "=", "/x", "--verify"]) | st.text(max_size=6)
    )
)
def test_no_text_gets_past_the_rule(words: list[str]) -> None:
    """Whatever the text, its words are refused, or each is a long option that is allowed or the value of one."""
    try:
        found = rules.arguments("vm", " ".join(words), KNOWN)
    except InputError:
        return
    for before, word in zip(["", *found], found, strict=False):
        name = word.removeprefix("--").partition("=")[0]
        allowed = word.startswith("--") and (name in rules.GENERAL or (name.startswith("vm-") and name not in ("vm-ops", "vm-rw")))
        assert allowed or (before.startswith("--") and not word.startswith("-") and "/" not in word)


@pytest.mark.parametrize(
    ("stressor", "why"),
    [
        ("reboot", "outlives"),
        ("bad-ioctl", "pathological"),
        ("plugin", "code of a file"),
        ("softlockup", "real-time"),
        ("../vm", "no name"),
        ("", "no name"),
        ("vm --timeout", "no name"),
    ],
)
def test_some_stressors_run_nowhere(stressor: str, why: str) -> None:
    """What may take the machine along, or what it changes outlives it, is refused in the scenario already."""
    with pytest.raises(InputError, match=why):
        check(replace(VM, options={"stressor": stressor}))


def test_what_a_node_can_not_end_it_refuses() -> None:
    """Names are those of the node's stress-ng; a stressor that leaves its session needs a group, one that leaves objects a namespace."""
    rules.check_on_node("daemon", KNOWN, EVERYTHING)
    rules.check_on_node("vm", KNOWN, Means(group=False, namespaces=False))
    with pytest.raises(InputError, match="did you mean 'vm-splice'"):
        rules.check_on_node("vm-splic", KNOWN, EVERYTHING)
    with pytest.raises(RefusedError, match="control group"):
        rules.check_on_node("daemon", KNOWN, Means(group=False, namespaces=True))
    with pytest.raises(RefusedError, match="CAP_SYS_ADMIN"):
        rules.check_on_node("msg", KNOWN, Means(group=True, namespaces=False))


def test_what_a_slot_reserves() -> None:
    """At the peak of the shape each instance counts with what its options state; cores are at most the node's."""
    each = Amounts(1.0, 100 * MIB + INSTANCE_BYTES, MIB, 0, 5 + INSTANCE_TASKS)
    assert peak_amounts(VM, CAPACITY) == each.plus(each).plus(each)
    half = replace(VM, unit="fraction", shape={"kind": "constant", "level": 0.5})
    assert peak_amounts(half, CAPACITY) == replace(each.plus(each), cpu_cores=2.0)
    many = replace(half, options={**VM.options, "instances": 9})
    assert peak_amounts(many, CAPACITY).tasks == 9 * each.tasks
    assert peak_amounts(replace(VM, options={**VM.options, "cores": 3.0}), CAPACITY).cpu_cores == 4.0


def test_without_stress_ng_it_is_refused_with_what_to_do(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Where PATH finds no stress-ng the node refuses the operation, and names the package."""
    monkeypatch.setenv("PATH", str(tmp_path))
    with pytest.raises(RefusedError, match="stress-ng is not installed on this node; install the package stress-ng") as caught:
        check_here(VM, tmp_path)
    assert caught.value.code == "capability"


def test_a_program_that_only_has_its_name_is_refused(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A stress-ng that does not name its stressors is no stress-ng."""
    program = tmp_path / "stress-ng"
    program.write_text("#!/bin/sh\nexit 3\n")
    program.chmod(0o755)
    monkeypatch.setenv("PATH", f"{tmp_path}{os.pathsep}{os.environ['PATH']}")
    assert tree.find() == str(program)
    assert tree.version(str(program)) == "unknown"
    with pytest.raises(RefusedError, match="does not name its stressors"):
        tree.stressors(str(program))


def test_figures_are_read_and_nonsense_is_left_out() -> None:
    """Each entry with all of its figures is one instance; others, and documents of another form, are none."""
    entry = {"stressor": "vm", "bogo-ops": 10, "bogo-ops-per-second-real-time": 5.5, "user-time": 1.0, "system-time": 0, "max-rss": 4}
    assert rules.figures({"metrics": [entry, {**entry, "max-rss": "?"}, {**entry, "bogo-ops": float("nan")}, "x"]}) == [
        Figures(10.0, 5.5, 1.0, 0.0, 4096.0)
    ]
    for other in (None, [], "text", {"metrics": None}, {"metrics": {"a": 1}}, {}):
        assert rules.figures(other) == []


@pytest.mark.parametrize(
    ("told", "want"),
    [
        (
            "stress-ng: info:  [12] dispatching hogs: 1 exec\nstress-ng: info: [12] exec stressor must not run as root, skipping\n",
            "exec stressor",
        ),
        ("stress-ng: info:  [9] dispatching hogs: 1 x\nstress-ng: info: [9] done\n", "done"),
        ("", "it said nothing"),
    ],
)
def test_why_it_ended_is_its_own_word(told: str, want: str) -> None:
    """The first line that tells of trouble is the reason, else the last one."""
    assert rules.reason(told).startswith(want)


def test_a_session_is_read_from_proc() -> None:
    """A member has its name with all blanks and brackets, its CPU time with its children's, its threads."""
    one = session.parse("7 (a) b(c) S 3 7 5 0 -1 0 0 0 0 0 100 50 25 25 20 0 9 0 1234 0 0")
    assert (one.pid, one.name, one.parent, one.session, one.threads, one.starttime) == (7, "a) b(c", 3, 5, 9, 1234)
    assert one.cpu_s == pytest.approx(200 / os.sysconf("SC_CLK_TCK"))


def member(pid: int, parent: int, state: str = "S", name: str = "stress-ng") -> session.Member:
    return session.Member(pid, name, state, parent, 1, 0.0, 1, 1)


def test_instances_are_children_that_work() -> None:
    """An instance counts when it is the load's child, and it and a child of its own are awake."""
    two = [member(1, 0, name="python"), member(2, 1), member(3, 2), member(4, 1), member(5, 4)]
    assert session.instances(two, 1, "stress-ng") == 2
    for missing in ("T", "Z"):
        assert session.instances([*two[:-1], member(5, 4, missing)], 1, "stress-ng") == 1
        assert session.instances([*two[:-2], member(4, 1, missing), two[-1]], 1, "stress-ng") == 1
    assert session.instances(two, 2, "stress-ng") == 0
    assert [one.pid for one in session.below(two, 2)] == [2, 3]


def test_errors_are_our_own() -> None:
    """Each refusal is an expected error with a code, so that nothing was started."""
    for refuse in (lambda: rules.check_name("x y"), lambda: rules.arguments("vm", "x"), lambda: rules.check_on_node("x", (), EVERYTHING)):
        with pytest.raises(StressError):
            refuse()


def test_the_record_needs_no_stress_ng(tmp_path: Path) -> None:
    """Reading the record, and planning with it, runs nothing and needs no program."""
    code = "from actors.simulator import REGISTRY; print(REGISTRY['StressNg'].resolve_options({'stressor': 'vm'})['stressor'])"
    environment = {**load_environment({}, tmp_path), "PATH": ""}
    assert subprocess.run([sys.executable, "-c", code], env=environment, capture_output=True, text=True, check=True).stdout == "vm\n"

"""Which stressors of stress-ng may run where, with which options, and what its figures say. Pure.

stress-ng has 300 stressors and gets one or two with each release, so names are checked on the node against what is installed there. What is
refused, and why, was read in the sources of 0.15.06 and measured by killing each stressor in the middle (docs/decisions/0020).
"""

from __future__ import annotations

import difflib
import re
import shlex
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from typing import Any, Final

from ..errors import InputError, RefusedError

_NAME: Final = re.compile(r"[a-z0-9]+(-[a-z0-9]+)*\Z")
_NAME_MAX: Final = 40

# Options of stress-ng itself that change how a stressor works, not whether we keep control of it.
GENERAL: Final = frozenset(
    {
        *("aggressive", "ionice-class", "ionice-level", "maximize", "mbind", "minimize", "no-madvise", "no-rand-seed"),
        *("oomable", "page-in", "taskset", "timer-slack", "verify"),
    }
)

_PATHOLOGICAL: Final = "stress-ng itself calls it pathological: it may hang the machine"
_MACHINE: Final = "it changes what belongs to the whole machine and outlives its processes"
NEVER: Final[Mapping[str, str]] = {
    **dict.fromkeys(
        ("bad-ioctl", "bind-mount", "cpu-online", "mlockmany", "oom-pipe", "smi", "sysinval", "watchdog"),
        _PATHOLOGICAL,
    ),
    **dict.fromkeys(
        ("apparmor", "binderfs", "clock", "efivar", "loop", "memhotplug", "quota", "ramfs", "reboot", "set", "swap", "umount", "uprobe"),
        _MACHINE,
    ),
    **dict.fromkeys(("chattr", "inode-flags"), "killed at a bad moment it leaves files that nobody can remove"),
    **dict.fromkeys(("dev", "ioport", "rawdev"), "it writes to devices of the machine"),
    "plugin": "it runs code of a file",
    "softlockup": "it takes every core at real-time priority, also from what is to end it",
}
# They call setsid, so that only a control group still finds them.
LEAVES_SESSION: Final = frozenset({"daemon", "enosys", "fork", "session", "syscall"})
# Killed in the middle they leave System V or POSIX objects, which only a namespace of their own takes along.
LEAVES_OBJECTS: Final = frozenset({"mq", "msg", "sem-sysv", "shm", "shm-sysv"})


@dataclass(frozen=True, slots=True)
class Means:
    """What a node has to keep hold of a stressor: a control group for its processes, namespaces for its objects."""

    group: bool
    namespaces: bool


EVERYTHING: Final = Means(group=True, namespaces=True)


def check_name(stressor: str) -> None:
    """Refuse what can be no stressor's name, or is refused on any node. Raises `InputError` (`invalid_value`)."""
    if len(stressor) > _NAME_MAX or not _NAME.match(stressor):
        raise InputError(
            "invalid_value", f"{stressor!r:.80} is no name of a stressor", "they are in small letters, digits and '-', such as vm-rw"
        )
    if stressor in NEVER:
        raise InputError("invalid_value", f"the stressor {stressor!r} is refused: {NEVER[stressor]}")


def check_on_node(stressor: str, known: Iterable[str], means: Means) -> None:
    """Refuse what this node's stress-ng does not have (`InputError`), or what this node cannot end surely (`RefusedError`)."""
    names = list(known)
    if stressor not in names:
        close = difflib.get_close_matches(stressor, names, n=1)
        hint = f"did you mean {close[0]!r}?" if close else "see `stress-ng --stressors` there"
        raise InputError("unknown_name", f"stress-ng on this node has no stressor {stressor!r}", hint)
    if stressor in LEAVES_SESSION and not means.group:
        raise RefusedError(
            "capability",
            f"the stressor {stressor!r} leaves its session, and this node has no control group to find it by",
            "give the node a writable version 2 control group",
        )
    if stressor in LEAVES_OBJECTS and not means.namespaces:
        raise RefusedError(
            "capability",
            f"the stressor {stressor!r} leaves objects behind when it is killed, and this node may not make namespaces",
            "run Ray there with CAP_SYS_ADMIN",
        )


def arguments(stressor: str, text: str, known: Iterable[str] = ()) -> list[str]:
    """Return the words of an option text for a command line, or refuse them. Raises `InputError` (`invalid_value`).

    Taken are options of the stressor itself (`--vm-bytes` of vm) and of `GENERAL`, each with one value at most. Refused are those that say
    how many or how long (the operation does), other stressors' (`known` names them), and values that are paths: files stay with us.
    """
    try:
        words = shlex.split(text)
    except ValueError as error:
        raise InputError("invalid_value", f"options {text!r:.120} cannot be read: {error}") from error
    takes_value = False
    for word in words:
        if word.startswith("-"):
            name, has_value, value = word.removeprefix("--").partition("=")
            _check_option(stressor, word, name, known)
            _check_value(value)
            takes_value = not has_value
        elif takes_value:
            _check_value(word)
            takes_value = False
        else:
            raise InputError("invalid_value", f"{word!r:.80} belongs to no option", f"options look like --{stressor}-NAME VALUE")
    return words


def _check_option(stressor: str, word: str, name: str, known: Iterable[str]) -> None:
    if not word.startswith("--") or not _NAME.match(name):
        raise InputError("invalid_value", f"{word!r:.80} is no long option", f"options look like --{stressor}-NAME VALUE")
    if name in GENERAL:
        return
    own = f"{stressor}-"
    others = [other for other in known if len(other) > len(stressor) and (name == other or name.startswith(f"{other}-"))]
    if not name.startswith(own) or others:
        taken = f"only --{own}... and {', '.join(sorted(GENERAL))} are taken"
        whose = f"it is one of the stressor {max(others, key=len)!r}" if others else taken
        raise InputError("invalid_value", f"option {word!r:.80} is refused: {whose}")
    if name in {f"{own}ops", f"{own}op", f"{own}o"}:
        raise InputError("invalid_value", f"option {word!r:.80} is refused: the operation's duration says when it ends")


def _check_value(value: str) -> None:
    if "/" in value or value in {".", ".."}:
        raise InputError("invalid_value", f"the value {value!r:.80} is refused: it names a path, and files stay in a folder of ours")


@dataclass(frozen=True, slots=True)
class Figures:
    """What one instance says of itself at its end: bogo operations and their rate, CPU seconds, its largest resident size."""

    operations: float
    rate: float
    user_s: float
    system_s: float
    memory_bytes: float


_TROUBLE: Final = ("skipp", "fail", "error", "cannot", "not ", "Invalid", "unrecognized")
_FIELDS: Final = ("bogo-ops", "bogo-ops-per-second-real-time", "user-time", "system-time", "max-rss")


def figures(document: Any) -> list[Figures]:
    """Return what a document of `--yaml` says, by stressor that ran; an entry that lacks a figure, or has none, is left out."""
    entries = document.get("metrics") if isinstance(document, Mapping) else None
    found = []
    for entry in entries if isinstance(entries, list) else ():
        values = [float(entry[name]) for name in _FIELDS if _is_figure(entry, name)]
        if len(values) == len(_FIELDS):
            operations, rate, user_s, system_s, kibibytes = values
            found.append(Figures(operations, rate, user_s, system_s, kibibytes * 1024))
    return found


def _is_figure(entry: Any, name: str) -> bool:
    value = entry.get(name) if isinstance(entry, Mapping) else None
    return isinstance(value, (int, float)) and not isinstance(value, bool) and 0 <= value < float("inf")


def reason(told: str) -> str:
    """Return why a stress-ng ended, from what it printed: the first line that tells of trouble, else the last one."""
    lines = [line.partition("] ")[2] or line for line in told.splitlines() if line.strip()]
    spoken = [line for line in lines if any(word in line for word in _TROUBLE)]
    return (spoken[:1] or lines[-1:] or ["it said nothing"])[0][:300]

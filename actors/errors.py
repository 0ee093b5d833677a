"""The error tree, by blame. Each error says what happened, what was expected, and what to do.

    StressError
    ├── InputError      the caller: a document, option or setting is wrong            exit 2
    ├── RefusedError    this cluster: budget, capability, target or halt forbids it   exit 6
    ├── TargetError     the system under test did not do what was asked of it         exit 1
    └── HarnessError    us: the harness failed or an outcome is unknown               exit 3

Codes are stable: users may match them. `CODES` is the closed table, and `list errors` prints it.
Standard library only: the guardian uses it.
"""

from __future__ import annotations

from typing import Final

CODES: Final[dict[str, tuple[str, str]]] = {
    # code: (category, what it means)
    "invalid_document": ("input", "the scenario document is not valid"),
    "invalid_value": ("input", "a value is out of its range or of the wrong kind"),
    "invalid_setting": ("input", "a setting, flag or environment variable is not valid"),
    "unknown_key": ("input", "a key is not known at this place"),
    "unknown_name": ("input", "a name (scenario, simulator, metric, run) is not known"),
    "not_found": ("input", "a file or run directory does not exist"),
    "unsupported_version": ("input", "the document's version is not supported"),
    "no_target": ("resource", "no node of this cluster matches the targets"),
    "budget": ("resource", "the request passes a budget or what is left of it"),
    "capability": ("resource", "a node cannot do what is asked"),
    "halted": ("safety", "an emergency halt is in force"),
    "protected": ("safety", "a protected node would be harmed"),
    "busy": ("invalid_state", "another version or owner is at work here"),
    "stale_epoch": ("invalid_state", "the sender was replaced by a newer one"),
    "stale_slot": ("invalid_state", "the slot's lease ended or the slot was given to another"),
    "expired": ("timeout", "the command arrived after its not-valid-after time"),
    "timeout": ("timeout", "no answer within the time allowed"),
    "cancelled": ("cancelled", "stopped on request"),
    "lost": ("timeout", "a node or process is no longer heard"),
    "foreign": ("invalid_state", "something that is not ours stands where our effect should be"),
    "journal": ("os", "the undo journal cannot be written, so nothing may be armed"),
    "os": ("os", "the operating system refused; errno is kept"),
    "code_mismatch": ("internal", "two processes run different code"),
    "unsupported": ("resource", "this platform or kernel cannot do it"),
    "oom": ("resource", "an out-of-memory killer, the kernel's or Ray's, ended a process of ours"),
    "internal": ("internal", "a bug in the harness"),
}


class StressError(Exception):
    """Root of all expected errors. `code` is stable, `hint` says what to do."""

    exit_code: int = 3

    def __init__(self, code: str, message: str, hint: str = "") -> None:
        assert code in CODES, f"unknown error code {code!r}"
        super().__init__(message)
        self.code = code
        self.message = message
        self.hint = hint

    def __reduce__(self) -> tuple[type[StressError], tuple[str, str, str]]:
        return (type(self), (self.code, self.message, self.hint))

    def __str__(self) -> str:
        return f"{self.message}; {self.hint}" if self.hint else self.message

    def to_json(self) -> dict[str, dict[str, str]]:
        """Return the document that `--json` prints for this error."""
        return {"error": {"code": self.code, "message": self.message, "hint": self.hint}}


class InputError(StressError):
    """The caller's document, option or setting is wrong; nothing was started."""

    exit_code = 2


class RefusedError(StressError):
    """Valid, but this cluster forbids it now; nothing was started."""

    exit_code = 6


class TargetError(StressError):
    """The system under test failed where it was asked to work."""

    exit_code = 1


class HarnessError(StressError):
    """The harness failed, or an outcome is unknown."""

    exit_code = 3

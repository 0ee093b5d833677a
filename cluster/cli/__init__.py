"""The command line: `stress-cluster COMMAND`. One file per group of commands; nothing heavy is imported before it is needed."""

from __future__ import annotations

import contextlib
import inspect
import sys
import traceback
from collections.abc import Callable, Sequence
from typing import Any, Final

import typer

from actors.errors import HarnessError, InputError, StressError

from . import catalogue, config, control, doctor, export, exporters, output, plan, query, report, run, submit, trace

__all__ = ["main"]

EPILOG: Final = """\b
First steps:
  stress-cluster doctor                 what this machine can do
  stress-cluster plan burst             what a scenario would do; starts nothing
  stress-cluster run burst              run it here, undo it, judge it
  stress-cluster report latest          what was asked, achieved, and broken

\b
Stop everything:
  Ctrl-C in the run's terminal, `stress-cluster stop`, or at once: `stress-cluster halt`.
"""

app = typer.Typer(
    name="stress-cluster",
    help="Measured, safe stress on the machines of a Ray cluster. Every load ends with its lease and every effect is undone.",
    epilog=EPILOG,
    add_completion=False,
    no_args_is_help=True,
    rich_markup_mode=None,
    pretty_exceptions_enable=False,
    context_settings={"help_option_names": ["-h", "--help"], "max_content_width": 120},
)

COMMANDS: Final[tuple[tuple[str, Callable[..., int], str], ...]] = (
    ("run", run.run, "put load on the nodes, watch it, undo it, judge"),
    ("plan", plan.plan, "what a scenario would do; starts nothing"),
    ("submit", submit.submit, "the same as a Ray job"),
    ("status", control.status, "what runs where, asked against achieved"),
    ("watch", control.watch, "follow a run live"),
    ("modify", control.modify, "change what a live run records"),
    ("stop", control.stop, "stop gracefully and undo"),
    ("halt", control.halt, "emergency: kill all load, refuse new runs"),
    ("resume", control.resume, "lift the halt"),
    ("recover", control.recover, "undo and deliver what a crash left"),
    ("forget", control.forget, "stop counting a node that will not come back"),
    ("doctor", doctor.doctor, "what each node can do, and why not"),
    ("list", catalogue.list_records, "simulators, scenarios, metrics, errors, ..."),
    ("describe", catalogue.describe, "all about one of them, or a setting"),
    ("validate", catalogue.validate, "check a scenario document"),
    ("schema", catalogue.schema, "JSON Schema of scenario documents"),
    ("report", report.report, "what was asked, achieved, and broken"),
    ("export", export.export, "a run's metrics as one file"),
    ("exporters", exporters.exporters, "how a run's exporters stand; pause, resume, change them"),
    ("trace", trace.trace, "the path of one row, from its node to each exporter"),
    ("query", query.query, "figures of a run's metrics, or how two go together"),
)


def _help(command: Callable[..., int]) -> str:
    """Return a command's docstring, with paragraphs that hold indented lines kept as they are written."""
    paragraphs = (inspect.getdoc(command) or "").split("\n\n")
    return "\n\n".join(f"\b\n{one}" if "\n  " in one else one for one in paragraphs)


for _name, _command, _short in COMMANDS:
    app.command(_name, help=_help(_command), short_help=_short)(_command)
config.app.command("show", help=_help(config.show), short_help="every setting and where it came from")(config.show)
app.add_typer(config.app, short_help="settings and where they came from")

_USAGE_ERROR: Final[Any] = typer.BadParameter.__mro__[1]  # the parser's own error; newer versions bring their own copy of it


def main(arguments: Sequence[str] | None = None) -> int:
    """Run one command and return its exit code. Prints errors; raises nothing."""
    given = list(sys.argv[1:] if arguments is None else arguments)
    as_json = "--json" in given
    try:
        with contextlib.suppress(typer.Abort):
            code = app(given, standalone_mode=False, prog_name="stress-cluster")
            return code if isinstance(code, int) else 0
    except StressError as error:
        return output.fail(error, as_json)
    except _USAGE_ERROR as error:
        return output.fail(InputError("invalid_value", error.format_message(), _usage_hint(error)), as_json)
    except KeyboardInterrupt:
        output.say("cancelled")
    except Exception as error:
        output.say(traceback.format_exc())
        wrong = HarnessError("internal", f"{type(error).__name__}: {error}", "this is a bug; the traceback is above")
        return output.fail(wrong, as_json)
    return 130


def _usage_hint(error: Any) -> str:
    context = getattr(error, "ctx", None)
    return f"see `{context.command_path} --help`" if context is not None else "see `stress-cluster --help`"

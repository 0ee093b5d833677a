"""The reference pages are made from the code: `UPDATE_GOLDEN=1` writes them anew; read them then."""

import os
import re
import shlex
from pathlib import Path

import pytest
import typer

from actors import reference as simulators
from actors.errors import CODES
from actors.kernels.table import to_page
from actors.metrics.registry import CATALOGUE
from actors.simulator import REGISTRY
from cluster import cli
from cluster.exporters.prometheus import OWN
from cluster.metrics import reference
from cluster.settings import reference_rows
from cluster.verdict import EXIT_CODES
from scenarios import kinds, text

ROOT = Path(cli.__file__).parents[2]
REFERENCE = ROOT / "docs" / "reference"
PAGES = sorted([*ROOT.glob("*.md"), *(ROOT / "docs").rglob("*.md"), *(ROOT / "deploy").rglob("*.md")])


def help_of(arguments, capsys, monkeypatch):
    monkeypatch.setenv("COLUMNS", "110")
    monkeypatch.setenv("TERM", "dumb")
    for name in ("RAY_ADDRESS", "RAY_API_SERVER_ADDRESS"):
        monkeypatch.delenv(name, raising=False)
    assert cli.main([*arguments, "--help"]) == 0
    return capsys.readouterr().out.rstrip() + "\n"


def check(path, found):
    if os.environ.get("UPDATE_GOLDEN"):
        path.write_text(found)
    assert found == path.read_text(), f"{path} is not what the code says; UPDATE_GOLDEN=1 writes it anew"


def test_command_reference(capsys, monkeypatch):
    """docs/reference/commands.md is the help of every command."""
    names = [[], *([name] for name, _, _ in cli.COMMANDS), ["config", "show"]]
    parts = ["# Commands\n\nThe help of every command, as it is printed.\n"]
    for name in names:
        title = " ".join(["stress-cluster", *name])
        parts.append(f"## `{title}`\n\n```text\n{help_of(name, capsys, monkeypatch)}```\n")
    check(REFERENCE / "commands.md", "\n".join(parts))


def test_settings_reference():
    """docs/reference/settings.md is the table of settings."""
    head = """# Settings

default < profile < file < environment < scenario < flag. The file is TOML: `stress-cluster.toml` in the current folder, or the one
given with `--config`; a dot in a name below is a table there. Durations and sizes take units in quotes: `"30s"`, `"512MiB"`.
`stress-cluster config show` prints what is in force and where each value came from. An unknown name is an error that offers the nearest.

What a scenario document itself says (`profile`, `limits.stale`, `exporters.prometheus`, a `metrics.level` other than normal) beats file
and environment, and a flag beats it; a document without a profile takes the one that is in force here. The profile that results
governs the whole run: admission, the nodes' limits and `plan`. It stands in the manifest, not in plan.json: a replay takes the profile
that is in force when it runs.

| setting | default | what it must be | variable | what it does |
|---|---|---|---|---|
"""
    rows = [
        f"| `{path}` | {default} | {expected} | `{variable}` | {told} |" for path, default, expected, variable, told in reference_rows()
    ]
    check(REFERENCE / "settings.md", head + "\n".join(rows) + "\n")


def test_error_reference():
    """docs/reference/errors.md is the closed table of error codes."""
    head = """# Error codes

Each error has one of these codes: in `{"error": {"code", "message", "hint"}}` of `--json`, in the labels of `errors.seen` and
`errors.rate`, and in the run's story (`events.parquet`, kind `error`: the first three of each code and node, with type and errno).
The table is closed.

| code | category | what it means |
|---|---|---|
"""
    rows = [f"| `{code}` | {category} | {meaning} |" for code, (category, meaning) in CODES.items()]
    check(REFERENCE / "errors.md", head + "\n".join(rows) + "\n")


def test_readme_names_every_simulator():
    """The table of README between its marks is the records', by family."""
    readme = ROOT / "README.md"
    before, begin, rest = readme.read_text().partition("<!-- simulators: begin. Made from the records. -->\n")
    _, end, after = rest.partition("<!-- simulators: end -->\n")
    assert begin
    assert end
    check(readme, f"{before}{begin}{simulators.families()}{end}{after}")


def test_simulators_reference():
    """docs/reference/simulators.md is the records: each simulator with its options, its metrics, and what it says of other nodes."""
    page = simulators.page()
    check(REFERENCE / "simulators.md", page)
    for name, record in REGISTRY.items():
        assert f"## {name}" in page
        assert all(f"| `{option.name}` | {option.expected} |" in page for option in record.options)
        assert all(f"`{metric}`" in page for metric in record.metrics)


def test_metrics_reference():
    """docs/reference/metrics.md is the catalogue, and what the Prometheus endpoint tells of itself."""
    check(REFERENCE / "metrics.md", reference.page(OWN.values()))
    assert all(f"| `{name}` |" in reference.page() for name in CATALOGUE)


def test_kernels_reference():
    """docs/reference/kernels.md is the table of kernels."""
    check(REFERENCE / "kernels.md", to_page())


@pytest.mark.parametrize("name", [name for name, _, _ in cli.COMMANDS])
def test_help_teaches_with_an_example(name, capsys, monkeypatch):
    """Every command's help has a line that can be copied and that the parser accepts."""
    told = help_of([name], capsys, monkeypatch)
    lines = [line.strip() for line in told.splitlines() if line.startswith("    stress-cluster ")]
    assert lines
    for line in lines:
        check_command(line.split("  ")[0])


def test_exit_codes_are_documented():
    """docs/reference/exit-codes.md has each code with its status."""
    page = (REFERENCE / "exit-codes.md").read_text()
    found = {(status, int(code)) for code, status in re.findall(r"^\| (\d+) \| `(\w+)` \|", page, re.MULTILINE)}
    assert found == {(str(cause), code) for cause, code in EXIT_CODES.items()}


def check_command(line):
    """Raise unless the line names a command that exists, with options that it has."""
    words = shlex.split(line.split("#")[0].split(" > ")[0])
    while "=" in words[0]:
        words.pop(0)
    assert words.pop(0) == "stress-cluster"
    if not words or words == ["--help"] or not words[0][0].islower():
        return
    known = {name: command for name, command, _ in cli.COMMANDS} | {"config": None}
    assert words[0] in known, line
    if words[0] == "config":
        assert words[1] == "show", line
        return
    options = help_options(words[0])
    for word in words[1:]:
        if word.startswith("--"):
            assert word in options, f"{line}: no option {word}"


def help_options(name):
    command = typer.main.get_command(cli.app).commands[name]
    return {"--help"} | {option for parameter in command.params for option in parameter.opts}


def blocks(language):
    for page in PAGES:
        for block in re.findall(rf"```{language}\n(.*?)```", page.read_text(), re.DOTALL):
            yield pytest.param(block, id=f"{page.relative_to(ROOT)}:{block.splitlines()[0][:40]}")


@pytest.mark.parametrize("block", list(blocks("sh")))
def test_commands_in_documents_exist(block):
    """Every command line in README and docs names a command and options that exist."""
    for line in block.splitlines():
        for part in line.split(" && "):
            if part.strip().startswith("stress-cluster "):
                check_command(part.strip())


def test_jobs_in_documents_run_from_a_working_directory():
    """Every `ray job submit` in README and docs starts Python on a file that is here or on our module: no script that must be installed."""
    jobs = [
        line.partition(" -- ")[2] for block in blocks("sh") for line in block.values[0].splitlines() if line.startswith("ray job submit")
    ]
    assert len(jobs) >= 3
    for job in jobs:
        python, what, *rest = job.split()
        assert python == "python", job
        if what == "-m":
            assert rest[0] == "cluster.cli", job
            check_command(" ".join(["stress-cluster", *rest[1:]]))
        else:
            assert (ROOT / what).is_file(), job


@pytest.mark.parametrize("block", [block for block in blocks("yaml") if block.values[0].startswith("version:")])
def test_scenarios_in_documents_are_valid(block):
    """Every scenario in README and docs is a valid document."""
    assert text.load(block).plan.duration_s > 0


@pytest.mark.parametrize("page", PAGES, ids=lambda page: str(page.relative_to(ROOT)))
def test_links_in_documents_lead_somewhere(page):
    """Every relative link in README and docs leads to a file."""
    for link in re.findall(r"\]\(([^)#]+)[^)]*\)", page.read_text()):
        if not link.startswith("http"):
            assert (page.parent / link).exists(), link


def test_the_stub_of_the_simulators_classes():
    """scenarios/kinds.pyi, by which editors and type checkers know the simulators, follows from their records."""
    check(ROOT / "scenarios" / "kinds.pyi", kinds.stub())

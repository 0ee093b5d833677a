"""Bad documents: each is refused with its place, what was expected, and what to do. Nothing is guessed."""

from __future__ import annotations

import time

import pytest

from actors.errors import InputError
from scenarios import Budget, CpuLoad, MemoryPressure, Scenario, Targets, Threshold, hold, sequence, text

HEAD = "version: 1\nname: x\n"
PLAN = "plan:\n  CpuLoad: {fraction: 50%}\n  for: 10s\n"
GOOD = HEAD + PLAN
EXPORT = GOOD + "exporters:\n  destinations:\n    - "


def refusal(document) -> InputError:
    with pytest.raises(InputError) as caught:
        text.load(document, "x.yaml")
    return caught.value


def test_the_base_document_is_good():
    """The rows below differ from a good document by one thing each."""
    assert text.load(GOOD).name == "x"


@pytest.mark.parametrize(
    ("document", "code", "place", "words"),
    [
        pytest.param(GOOD + "sede: 3\n", "unknown_key", "6:1", "did you mean 'seed'", id="unknown-key"),
        pytest.param(GOOD + "targets:\n  lables: {a: b}\n", "unknown_key", "7:3", "did you mean 'labels'", id="unknown-nested-key"),
        pytest.param(
            HEAD + "plan:\n  CpuLod: {fraction: 50%}\n  for: 1s\n", "unknown_key", "4:3", "did you mean 'CpuLoad'", id="unknown-simulator"
        ),
        pytest.param(
            HEAD + "plan:\n  CpuLoad: {fractoin: 50%}\n  for: 1s\n", "unknown_key", "4:13", "did you mean 'fraction'", id="unknown-option"
        ),
        pytest.param(
            HEAD + "plan:\n  CpuLoad: {fraction: 50%}\n  fro: 1s\n", "unknown_key", "5:3", "did you mean 'for'", id="misspelt-for"
        ),
        pytest.param(
            HEAD + "plan:\n  CpuLoad: {fraction: {sinus: {low: 1%}}}\n  for: 1s\n",
            "unknown_key",
            "4:24",
            "did you mean 'sine'",
            id="unknown-shape",
        ),
        pytest.param(GOOD.replace("50%", ".nan"), "invalid_value", "4:23", "expected a finite number", id="nan"),
        pytest.param(GOOD.replace("50%", "NaN"), "invalid_value", "4:23", "expected a share", id="nan-word"),
        pytest.param(GOOD.replace("50%", ".inf"), "invalid_value", "4:23", "finite", id="infinite"),
        pytest.param(GOOD.replace("50%", "1e999"), "invalid_value", "4:23", "finite", id="overflow"),
        pytest.param(GOOD.replace("50%", "-1"), "invalid_value", "4:23", "expected a share", id="negative"),
        pytest.param(GOOD.replace("50%", "-5%"), "invalid_value", "4:23", "expected a share", id="negative-percent"),
        pytest.param(GOOD.replace("50%", "101%"), "invalid_value", "4:23", "more than 100%", id="101-percent"),
        pytest.param(GOOD.replace("50%", "60"), "invalid_value", "4:23", "write 60%", id="forgotten-percent"),
        pytest.param(GOOD.replace("50%", "1.01"), "invalid_value", "4:23", "expected a share", id="1.01"),
        pytest.param(GOOD.replace("50%", "true"), "invalid_value", "4:23", "expected a share", id="truth"),
        pytest.param(GOOD.replace("50%", "~"), "invalid_value", "4:23", "found nothing", id="null"),
        pytest.param(GOOD.replace("50%", "[1]"), "invalid_value", "4:23", "found a list", id="list"),
        pytest.param(GOOD.replace("10s", "-10s"), "invalid_value", "5:8", "expected a duration", id="negative-duration"),
        pytest.param(GOOD.replace("10s", "0s"), "invalid_value", "5:8", "at least 0.1", id="no-duration"),
        pytest.param(GOOD.replace("10s", "31d"), "invalid_value", "5:8", "at most", id="endless"),
        pytest.param(GOOD.replace("  for: 10s\n", ""), "invalid_document", "4:3", "needs the key 'for'", id="for-missing"),
        pytest.param(GOOD.replace("version: 1", "version: 2"), "unsupported_version", "1:10", "expected 1", id="wrong-version"),
        pytest.param(GOOD.replace("version: 1", "version: 1.0"), "unsupported_version", "1:10", "expected 1", id="version-float"),
        pytest.param(GOOD.replace("version: 1", "version: true"), "unsupported_version", "1:10", "expected 1", id="version-truth"),
        pytest.param(GOOD.replace("version: 1\n", ""), "unsupported_version", "1:1", "begin the document with version: 1", id="no-version"),
        pytest.param(HEAD, "invalid_document", "1:1", "expected the key 'plan'", id="no-plan"),
        pytest.param(PLAN + "version: 1\n", "invalid_document", "1:1", "expected the key 'name'", id="no-name"),
        pytest.param(GOOD.replace("name: x", "name: A b"), "invalid_value", "2:7", "short word", id="bad-name"),
        pytest.param(GOOD.replace("name: x", "name: 12"), "invalid_value", "2:7", "put it in quotes", id="number-name"),
        pytest.param(GOOD + "name: y\n", "invalid_document", "6:1", "twice", id="duplicate-key"),
        pytest.param(GOOD + "seed: -1\n", "invalid_value", "6:7", "whole number", id="negative-seed"),
        pytest.param(GOOD + "seed: 1.5\n", "invalid_value", "6:7", "whole number", id="half-seed"),
        pytest.param(GOOD + "profile: brave\n", "invalid_value", "6:10", "conservative", id="unknown-profile"),
        pytest.param(GOOD + "targets: {count: 0}\n", "invalid_value", "6:18", "at least 1", id="no-targets"),
        pytest.param(GOOD + "targets: {fraction: 0%}\n", "invalid_value", "6:21", "above 0", id="no-target-share"),
        pytest.param(GOOD + "targets: {names: n1}\n", "invalid_value", "6:18", "expected a list", id="names-word"),
        pytest.param(GOOD + "targets: {labels: {a: 1}}\n", "invalid_value", "6:23", "put it in quotes", id="label-number"),
        pytest.param(GOOD + "budget: {duration_max: 5s}\n", "invalid_value", "4:3", "budget.duration_max is 5 s", id="longer-than-budget"),
        pytest.param(GOOD + "limits: {memory_fraction: 120%}\n", "invalid_value", "6:27", "more than 100%", id="limit-share"),
        pytest.param(
            GOOD + "hypotheses:\n  - threshold: {metric: host.cpu.bussy, stat: max, op: <, value: 3}\n",
            "unknown_name",
            "7:25",
            "did you mean 'host.cpu.busy'",
            id="unknown-metric",
        ),
        pytest.param(
            GOOD + "hypotheses:\n  - threshold: {metric: host.cpu.busy, stat: max, op: <, value: 3s}\n",
            "invalid_value",
            "7:65",
            "expected a fraction",
            id="wrong-unit",
        ),
        pytest.param(
            GOOD + "hypotheses:\n  - threshold: {metric: host.cpu.busy, stat: max, op: <}\n",
            "invalid_document",
            "7:16",
            "expected the key 'value'",
            id="no-value",
        ),
        pytest.param(GOOD + "hypotheses:\n  - probe: {}\n", "unknown_key", "7:5", "did you mean 'actor_probe'", id="unknown-hypothesis"),
        pytest.param(
            GOOD + "hypotheses:\n  - actor_probe: {value: 1s}\n  - actor_probe: {value: 1s}\n",
            "invalid_value",
            "7:3",
            "another name",
            id="two-of-a-name",
        ),
        pytest.param(HEAD + "plan:\n  sequence: []\n", "invalid_value", "4:13", "at least one part", id="empty-sequence"),
        pytest.param(EXPORT + "{type: cvs, path: x}\n", "invalid_value", "8:14", "did you mean 'csv'", id="unknown-export-type"),
        pytest.param(EXPORT + "{type: csv}\n", "invalid_document", "8:7", "expected the key 'path'", id="export-without-path"),
        pytest.param(EXPORT + "{type: csv, path: ../x}\n", "invalid_value", "8:25", "without `..`", id="export-outside"),
        pytest.param(EXPORT + "{type: csv, path: x, que_rows: 3}\n", "unknown_key", "8:28", "did you mean 'queue_rows'", id="export-key"),
        pytest.param(EXPORT + "{type: csv, path: x, flush: 3cm}\n", "invalid_value", "8:35", "expected a duration", id="export-unit"),
        pytest.param(
            EXPORT + "{type: csv, path: x, overflow: block}\n", "invalid_value", "8:38", "expected one of drop_oldest", id="block"
        ),
        pytest.param(EXPORT + "{type: csv, path: x, overflow: spill}\n", "invalid_value", "8:38", "add spill: true", id="no-spill"),
        pytest.param(EXPORT + "{type: csv, path: x, batch_rows: 9, queue_rows: 3}\n", "invalid_value", "8:40", "queue", id="export-batch"),
        pytest.param(EXPORT + "{type: json, path: x, rotate: 1MB}\n", "invalid_value", "8:37", "does not belong", id="rotate-a-whole-file"),
        pytest.param(EXPORT + "{type: json, path: x, sync: never}\n", "invalid_value", "8:35", "does not belong", id="sync-a-whole-file"),
        pytest.param(EXPORT + "{type: csv, path: x, sync: often}\n", "invalid_value", "8:34", "one of always", id="export-sync"),
        pytest.param(
            EXPORT + "{type: csv, path: x, format: {indent: 2}}\n", "invalid_value", "8:36", "csv has time", id="another-types-format"
        ),
        pytest.param(EXPORT + "{type: arrow, path: x, format: {decimals: 2}}\n", "invalid_value", "8:38", "has no format", id="no-format"),
        pytest.param(
            EXPORT + "{type: csv, path: x, format: {separator: ab}}\n", "invalid_value", "8:48", "one ASCII character", id="separator"
        ),
        pytest.param(EXPORT + "{type: csv, path: x}\n    - {type: csv, path: y}\n", "invalid_value", "8:5", "of its own", id="twice"),
        pytest.param(
            EXPORT + "{type: csv, path: x, rules: [{keep: true, rename: y}]}\n", "invalid_value", "8:36", "exactly one", id="two-actions"
        ),
        pytest.param(
            EXPORT + "{type: csv, path: x}\n  routes: [{to: [csw]}]\n", "invalid_value", "9:11", "there are: csv", id="route-to-nowhere"
        ),
        pytest.param(HEAD + "plan:\n  pause: 10s\n", "invalid_value", "4:3", "holds no load", id="only-pauses"),
        pytest.param(HEAD + "plan: {}\n", "invalid_document", "3:7", "exactly one of", id="empty-plan"),
        pytest.param(HEAD + "plan: burst\n", "invalid_value", "3:7", "expected a mapping", id="plan-word"),
        pytest.param(
            HEAD + "plan:\n  CpuLoad: {fraction: 1%}\n  DiskFill: {bytes: 1B}\n",
            "invalid_document",
            "4:3",
            "exactly one of",
            id="two-simulators",
        ),
        pytest.param(
            HEAD + "plan:\n  MemoryPressure: {}\n  for: 1s\n", "invalid_value", "4:19", "fraction or bytes, got neither", id="no-strength"
        ),
        pytest.param(
            HEAD + "plan:\n  MemoryPressure: {bytes: 1MiB, fraction: 1%}\n  for: 1s\n",
            "invalid_value",
            "4:19",
            "got both",
            id="two-strengths",
        ),
        pytest.param(
            HEAD + "plan:\n  MemoryPressure: {bytes: 1.5}\n  for: 1s\n", "invalid_value", "4:27", "whole number of bytes", id="half-a-byte"
        ),
        pytest.param(
            HEAD + "plan:\n  DiskFill: {bytes: 1B, dir: tmp}\n  for: 1s\n", "invalid_value", "4:30", "absolute path", id="relative-dir"
        ),
        pytest.param(
            HEAD + "plan:\n  CpuLoad: {fraction: {sine: {low: 60%, high: 10%, period: 5s}}}\n  for: 1s\n",
            "invalid_value",
            "4:47",
            "at least 0.6",
            id="low-above-high",
        ),
        pytest.param(
            HEAD + "plan:\n  CpuLoad: {fraction: 1%, cores: 0}\n  for: 1s\n", "invalid_value", "4:34", "whole number from 1", id="no-cores"
        ),
        pytest.param("- 1\n", "invalid_document", "1:1", "expected a scenario", id="list-document"),
        pytest.param("just words\n", "invalid_document", "1:1", "expected a scenario", id="text-document"),
        pytest.param("a: b: c\n", "invalid_document", "1:5", "not YAML", id="not-yaml"),
        pytest.param("a: [1\n", "invalid_document", "2:1", "not YAML", id="unclosed"),
        pytest.param(GOOD + "---\n" + GOOD, "invalid_document", "6:1", "one document", id="two-documents"),
        pytest.param(GOOD + "? {a: b}\n: 1\n", "invalid_document", "6:3", "a key must be a word", id="mapping-as-key"),
        pytest.param(GOOD + "1: 2\n", "invalid_document", "6:1", "a key must be a word", id="number-as-key"),
        pytest.param(GOOD.replace("name: x", "name: &a x"), "invalid_document", "2:7", "anchors", id="anchor"),
        pytest.param(GOOD + "description: *a\n", "invalid_document", "6:14", "aliases", id="alias"),
        pytest.param(GOOD.replace("name: x", "name: !!python/object:os.system x"), "invalid_document", "2:7", "tags", id="tag"),
        pytest.param(GOOD + "description: !!str 3\n", "invalid_document", "6:14", "tags", id="standard-tag"),
        pytest.param(GOOD + 'description: "\\x1b[31m"\n', "invalid_value", "6:14", "printable", id="escape-code"),
        pytest.param(GOOD + 'description: "\\ud800"\n', "invalid_value", "6:14", "printable", id="surrogate"),
    ],
)
def test_bad_documents_are_refused_with_their_place(document, code, place, words):
    """A bad document raises `InputError` with a stable code, line and column, and what to do."""
    error = refusal(document)
    assert error.code == code, str(error)
    assert error.message.startswith(f"x.yaml:{place}: "), str(error)
    assert words in str(error), str(error)
    assert error.exit_code == 2


@pytest.mark.parametrize(
    ("document", "words"),
    [
        pytest.param("", "empty", id="empty"),
        pytest.param("# nothing\n", "empty", id="comment"),
        pytest.param("---\n...\n", "empty", id="null-document"),
        pytest.param(b"\xff\xfe\x00\x01", "not UTF-8", id="utf-16"),
        pytest.param(GOOD.encode() + b"description: \xe9\n", "x.yaml:6:1", id="latin-1"),
        pytest.param(b"\x7fELF\x02\x01\x01\x00", "found the character", id="binary"),
        pytest.param(GOOD + "description: a\x00b\n", "x.yaml:6:15", id="nul"),
        pytest.param(" " * ((1 << 20) + 1), "at most 1048576", id="huge"),
        pytest.param("[" * 100_000, "nested deeper", id="deep-list"),
        pytest.param("{a: " * 100_000, "nested deeper", id="deep-mapping"),
        pytest.param("- " * 100_000, "nested deeper", id="deep-block"),
        pytest.param("- a\n" * 100_000, "more than 20000 parts", id="many"),
        pytest.param(GOOD + f"description: {'y' * 20_000}\n", "longer than 10000", id="long-text"),
        pytest.param(HEAD + f"plan: {'{sequence: [' * 25}1{']}' * 25}\n", "nested deeper than 16", id="deep-plan"),
        pytest.param(
            "a: &a [x,x,x,x,x,x,x,x,x]\n"
            + "".join(f"{b}: &{b} [{','.join('*' + a for _ in range(9))}]\n" for a, b in zip("abcdefgh", "bcdefghi", strict=True)),
            "anchors and aliases are not read",
            id="billion-laughs",
        ),
    ],
)
def test_documents_that_are_no_text_or_too_much_are_refused_quickly(document, words):
    """Binary, empty, huge, deep and exploding documents are refused within 3 s of CPU time."""
    before_s = time.process_time()
    error = refusal(document)
    assert time.process_time() - before_s < 3
    assert error.code in ("invalid_document", "invalid_value")
    assert words in str(error), str(error)


@pytest.mark.parametrize(
    ("name", "code"),
    [
        ("gone.yaml", "not_found"),
        ("gone.py", "not_found"),
        ("folder.yaml", "not_found"),
        ("burst.txt", "invalid_value"),
        ("a\0b.yaml", "not_found"),
    ],
)
def test_files_that_cannot_be_read_are_input_errors(tmp_path, name, code):
    """A missing file, a folder, or another kind of file is refused with its name."""
    (tmp_path / "folder.yaml").mkdir()
    with pytest.raises(InputError) as caught:
        text.load_file(f"{tmp_path}/{name}")
    assert caught.value.code == code


@pytest.mark.parametrize(
    "make",
    [
        pytest.param(lambda: CpuLoad(1.01), id="101-percent"),
        pytest.param(lambda: CpuLoad(float("nan")), id="nan"),
        pytest.param(lambda: CpuLoad("60%"), id="text"),
        pytest.param(lambda: CpuLoad(0.5, mode="all"), id="mode"),
        pytest.param(lambda: CpuLoad(0.5, cores=True), id="cores"),
        pytest.param(MemoryPressure, id="no-strength"),
        pytest.param(lambda: MemoryPressure(bytes=-1), id="negative-bytes"),
        pytest.param(lambda: MemoryPressure(bytes=1 << 60), id="beyond-float"),
        pytest.param(lambda: hold(CpuLoad(0.5), for_s=0), id="no-span"),
        pytest.param(lambda: hold(CpuLoad(0.5), for_s=float("inf")), id="endless"),
        pytest.param(lambda: hold("CpuLoad", for_s=3), id="no-simulator"),
        pytest.param(sequence, id="empty"),
        pytest.param(lambda: sequence(3), id="no-tree"),
        pytest.param(lambda: Targets(count=0), id="no-targets"),
        pytest.param(lambda: Targets(count=1, fraction=0.5), id="count-and-fraction"),
        pytest.param(lambda: Targets(names="n1"), id="names-text"),
        pytest.param(lambda: Budget(nodes_max=0), id="budget"),
        pytest.param(lambda: Threshold("host.cpu.busy", "p42", "<", 1), id="stat"),
        pytest.param(lambda: Threshold("host.cpu.busy", "max", "==", 1), id="operator"),
        pytest.param(lambda: Threshold("host.cpu.busy", "max", "<", float("nan")), id="nan-threshold"),
        pytest.param(lambda: Threshold("host.cpu.busy", "max", "<", 1, labels={"reason": "x"}), id="undeclared-label"),
        pytest.param(lambda: Threshold("host.cpu.busy", "max", "<", 1, unit="bytes"), id="undeclared-unit"),
        pytest.param(lambda: Scenario("x", hold(CpuLoad(0.5), 3), version=2), id="version"),
        pytest.param(lambda: Scenario("x", hold(CpuLoad(0.5), 3), targets=None), id="targets"),
        pytest.param(lambda: Scenario("x", hold(CpuLoad(0.5), 3), hypotheses=(1,)), id="hypothesis"),
        pytest.param(lambda: Scenario("x", hold(CpuLoad(0.5), 3), seed=2**63), id="seed"),
        pytest.param(lambda: Scenario("x", None), id="plan"),
    ],
)
def test_the_python_twin_refuses_the_same(make):
    """A value that exists is valid: the Python form checks what the YAML form checks."""
    with pytest.raises(InputError) as caught:
        make()
    assert caught.value.exit_code == 2

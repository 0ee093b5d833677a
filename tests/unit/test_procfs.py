"""What is read of /proc, from made files: each form by one rule, and each of them in one module."""

from __future__ import annotations

from pathlib import Path

import pytest

from actors import procfs

PACKAGES = ("actors", "scenarios", "cluster")
ROOT = Path(__file__).parents[2]
STATUS = "Name:\tload\nVmRSS:\t     900 kB\nRssAnon:\t     640 kB\nThreads:\t1\n"
TAIL = " ".join(str(number) for number in range(4, 53))

# How each is read is known to one module, whatever else uses the figure; by what only a reader of it would write.
READERS = {
    "RssAnon:": set[str](),  # the form with its colon, as only `size_bytes` makes it
    "MemTotal:": set[str](),
    "MemAvailable:": set[str](),
    "SwapTotal:": set[str](),
    'rpartition(")")': {"actors/procfs.py"},
    "SC_CLK_TCK": {"actors/procfs.py"},
    "/proc/sys/kernel/random/boot_id": {"actors/proc.py"},
    "sys/net/ipv4/ip_local_port_range": {"actors/counted.py"},
    "sys/fs/file-max": {"actors/counted.py"},
    "sys/vm/max_map_count": {"actors/counted.py"},
    '"threads-max"': {"actors/counted.py"},
    '"pids.max"': {"actors/counted.py"},
    '"cpu.max"': {"actors/limits.py"},
    '"memory.max"': {"actors/limits.py"},
    '"pressure/cpu"': {"actors/limits.py"},
    "SC_PHYS_PAGES": {"actors/limits.py"},
}


@pytest.mark.parametrize(
    ("text", "key", "want"),
    [
        pytest.param(STATUS, "RssAnon", 640 << 10, id="of-a-process"),
        pytest.param("MemTotal:       8 kB\nMemAvailable: 4 kB\n", "MemAvailable", 4096, id="of-the-machine"),
        pytest.param(STATUS, "Rss", None, id="a-part-of-a-name"),
        pytest.param("", "RssAnon", None, id="nothing"),
    ],
)
def test_sizes(text: str, key: str, want: int | None) -> None:
    """In bytes, by the whole name; None where the kernel does not tell."""
    assert procfs.size_bytes(text, key) == want


@pytest.mark.parametrize("command", ["load", "a b", "a) S 1 (b", ")(", ""])
def test_no_command_moves_the_fields_of_a_stat(command: str) -> None:
    """Blanks and parentheses belong to it."""
    found = procfs.split_stat(f"77 ({command}) R {TAIL}\n")
    assert found == (77, command, ["R", *TAIL.split()])
    assert procfs.major_faults(f"77 ({command}) R {TAIL}") == 12  # field 12 is itself in this stat


@pytest.mark.parametrize("text", ["", "no stat", "x (y) R"])
def test_what_is_no_stat_is_an_error(text: str) -> None:
    """Of one kind, so that a process that ends while it is read is one case."""
    with pytest.raises(ValueError):
        procfs.split_stat(text)


def test_a_range_of_ports() -> None:
    """First and last; words that are none are an error."""
    assert procfs.port_range("32768\t60999\n") == (32768, 60999)
    for text in ("", "1", "1 2 3", "a b"):
        with pytest.raises(ValueError):
            procfs.port_range(text)


def test_each_figure_of_the_system_has_one_reader() -> None:
    """Whoever needs one imports it from there."""
    paths = [path for package in PACKAGES for path in (ROOT / package).rglob("*.py")]
    sources = {path.relative_to(ROOT).as_posix(): path.read_text(encoding="utf-8") for path in paths}
    assert {text: {name for name, source in sources.items() if text in source} for text in READERS} == READERS

from __future__ import annotations

from pathlib import Path

from actors.dose import OutsideMeter, ProcessFiles, count_established
from actors.messages import Operation

SHAPE = {"kind": "constant", "level": 1}


def make_process(proc: Path, pid: int, tasks: dict[int, int], anonymous_kib: int) -> Path:
    folder = proc / str(pid)
    for task, ns in tasks.items():
        (folder / "task" / str(task)).mkdir(parents=True, exist_ok=True)
        (folder / "task" / str(task) / "schedstat").write_text(f"{ns} 5 6\n")
    (folder / "status").write_text(f"Name:\tx\nRssAnon:\t{anonymous_kib} kB\nRssFile:\t99 kB\n")
    return folder


def operation(kind: str) -> Operation:
    return Operation("o", kind, "n", 0.0, 1.0, "bytes", SHAPE)


def test_cpu_is_the_sum_over_threads_and_never_falls(tmp_path: Path) -> None:
    """A thread that ended keeps what it used: the total of a living process never runs backwards."""
    folder = make_process(tmp_path, 10, {10: 1_000_000_000, 11: 500_000_000}, 0)
    meter = OutsideMeter(operation("CpuLoad"), [10], proc=tmp_path)
    first = meter.read()
    (folder / "task/11/schedstat").unlink()
    (folder / "task/11").rmdir()
    (folder / "task/10/schedstat").write_text("1250000000 0 0\n")
    assert (first, meter.read()) == (1.5, 1.75)
    meter.close()


def test_a_group_of_its_own_counts_before_threads(tmp_path: Path) -> None:
    """Where the operation has a control group, short-lived children count too."""
    make_process(tmp_path, 10, {10: 5}, 0)
    (tmp_path / "group").mkdir()
    (tmp_path / "group/cpu.stat").write_text("usage_usec 3000000\n")
    assert OutsideMeter(operation("CpuLoad"), [10], cgroup=tmp_path / "group", proc=tmp_path).read() == 3.0
    assert OutsideMeter(operation("CpuLoad"), [10], cgroup=tmp_path / "gone", proc=tmp_path).read() == 5e-9


def test_memory_counts_from_its_baseline(tmp_path: Path) -> None:
    """What the process held before the ramp is no dose, and less than that is none either."""
    make_process(tmp_path, 10, {10: 0}, 1000)
    meter = OutsideMeter(operation("MemoryPressure"), [10], proc=tmp_path)
    assert meter.set_baseline() == 1000 * 1024
    make_process(tmp_path, 10, {10: 0}, 5000)
    grown = meter.read()
    make_process(tmp_path, 10, {10: 0}, 900)
    assert (grown, meter.read()) == (4000 * 1024.0, 0.0)


def test_gone_is_none_and_not_zero(tmp_path: Path) -> None:
    """A process or file that is gone gives no figure, also when its number is used again."""
    folder = make_process(tmp_path, 10, {10: 1}, 1)
    files, meter = ProcessFiles(10, tmp_path), OutsideMeter(operation("CpuLoad"), [10], proc=tmp_path)
    folder.rename(tmp_path / "old")
    for path in sorted((tmp_path / "old").rglob("*"), reverse=True):
        path.rmdir() if path.is_dir() else path.unlink()
    (tmp_path / "old").rmdir()
    make_process(tmp_path, 10, {10: 77}, 77)
    assert (files.cpu_ns(), files.anonymous_bytes(), meter.read()) == (None, None, None)
    assert OutsideMeter(operation("CpuLoad"), [4], proc=tmp_path).read() is None


def test_a_fill_that_never_was_holds_nothing_and_one_that_went_is_unknown(tmp_path: Path) -> None:
    """A fill that found no room is a dose of zero; after a file was there, its absence is no measurement."""
    meter = OutsideMeter(operation("DiskFill"), paths=[tmp_path / "fill", tmp_path / "more"])
    assert meter.read() == 0.0
    (tmp_path / "fill").write_bytes(b"x" * 65536)
    assert meter.read() == 65536.0
    (tmp_path / "more").write_bytes(b"x" * 4096)
    assert meter.read() == 65536.0 + 4096.0
    (tmp_path / "fill").unlink()
    assert meter.read() == 4096.0
    (tmp_path / "more").unlink()
    assert meter.read() is None


def test_disk_is_blocks_and_not_length(tmp_path: Path) -> None:
    """A hole in a file is no dose."""
    path = tmp_path / "file"
    with path.open("wb") as file:
        file.write(b"x" * 65536)
        file.truncate(1 << 30)
    found = OutsideMeter(operation("DiskFill"), paths=[path]).read()
    assert found is not None
    assert 65536 <= found < 1 << 20


def test_what_exhaustion_takes_is_read_from_links_and_lists(tmp_path: Path) -> None:
    """Sockets, segments, nameless files, children, and bytes moved: each by what the kernel shows of the process, above its baseline."""
    folder = make_process(tmp_path, 10, {10: 0, 11: 0}, 0)
    (folder / "fd").mkdir()
    targets = [
        "socket:[7]",
        "socket:[8]",
        "/memfd:x (deleted)",
        "/data/#12 (deleted)",
        "/data/#13 (deleted)",
        "/data/#14 (deleted)",
        "/dev/null",
    ]
    for fd, target in enumerate(targets):
        (folder / "fd" / str(fd)).symlink_to(target)
    (folder / "task/10/children").write_text("101 102 ")
    (folder / "task/11/children").write_text("103 ")
    (folder / "io").write_text("rchar: 9\nread_bytes: 100\nwrite_bytes: 23\n")
    wanted = {"Sockets": 2, "SharedMemory": 1, "Inodes": 3, "Processes": 3, "DiskIO": 123, "Descriptors": 7}
    meters = {kind: OutsideMeter(operation(kind), [10], proc=tmp_path) for kind in wanted}
    assert {kind: meter.read() for kind, meter in meters.items()} == wanted
    assert {kind: meter.set_baseline() for kind, meter in meters.items()} == {**wanted, "DiskIO": 0}
    (folder / "fd/7").symlink_to("socket:[9]")
    assert {kind: meter.read() for kind, meter in meters.items() if kind != "DiskIO"} == {
        kind: int(kind in ("Sockets", "Descriptors")) for kind in wanted if kind != "DiskIO"
    }


def test_a_connection_counts_as_far_as_its_ends_are_there_and_established() -> None:
    """Rows of the kernel's table: an end by itself is half a connection, one in another state or of another process none."""

    def row(local: int, remote: int, state: str, inode: str) -> str:
        return f"  0: 0100007F:{local:04X} 0100007F:{remote:04X} {state} 0:0 00:0 0 0 0 {inode} 1"

    ours = [row(50, 80, "01", "1"), row(80, 50, "01", "2"), row(51, 80, "01", "3"), row(80, 51, "01", "4")]
    others = [row(52, 80, "01", "5"), row(80, 52, "06", "6"), row(53, 80, "01", "98"), row(80, 53, "01", "99")]
    table = "\n".join(["  sl  local_address", *ours, *others])
    assert count_established(table, {"1", "2", "3", "4", "6"}) == 2.0
    assert count_established(table, {"1", "2", "3"}) == 1.5
    assert count_established(table, {"6", "7"}) == 0.0


def test_a_kernel_that_lists_no_children_gives_no_figure(tmp_path: Path) -> None:
    """Not to know is not to count none."""
    make_process(tmp_path, 10, {10: 0}, 0)
    assert OutsideMeter(operation("Processes"), [10], proc=tmp_path).read() is None

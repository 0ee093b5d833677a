"""The two pages: what is stored is what is read, and only the guardian may store leases."""

from __future__ import annotations

import mmap
import os

import pytest

from actors import control
from actors.control import ControlPage, ControlWriter, StatsPage, pack_lease, unpack_lease
from actors.messages import Halt


@pytest.fixture
def pages():
    writer, fd = ControlWriter.create()
    reader = ControlPage.from_fd(fd)
    yield writer, reader, fd
    reader.close()
    writer.close()
    os.close(fd)


def test_a_reader_sees_each_word_that_the_writer_stored(pages):
    """Every field of a slot arrives unchanged, in its own slot and nowhere else."""
    writer, reader, _ = pages
    writer.reset_slot(5, 9, epoch=3, sharers=2)
    writer.write_lease(5, 9, 12_345_678_000)
    writer.write_stop(5, 9, control.STOP_DRAIN)
    writer.write_ceiling(5, 0.25)
    writer.write(5, control.GATE, 9)
    writer.write(5, control.START, 77)
    writer.beat(424_242)
    assert reader.lease(5) == (9, 12_345_678_000)
    assert reader.stop(5) == (9, control.STOP_DRAIN)
    assert (reader.ceiling(5), reader.epoch(5), reader.gate(5), reader.start_ns(5), reader.sharers(5)) == (0.25, 3, 9, 77, 2)
    assert reader.heartbeat_ns == 424_242
    assert (reader.halt, reader.halt_kept) == (Halt(), Halt())
    writer.write_halt(Halt(7, on=True), Halt(6))
    assert (reader.halt, reader.halt_kept) == (Halt(7, on=True), Halt(6))
    for other in (0, 4, 6, control.SLOTS - 1):
        assert reader.lease(other) == (0, 0)


@pytest.mark.parametrize(
    ("generation", "deadline_ns", "now_ns", "want"),
    [
        pytest.param(7, 2_000_000, 1_999_999, True, id="before-the-deadline"),
        pytest.param(7, 2_000_000, 2_000_000, False, id="at-the-deadline"),
        pytest.param(8, 2_000_000, 1_000_000, False, id="another-generation"),
        pytest.param(7, 0, 0, False, id="no-lease"),
    ],
)
def test_a_lease_lives_only_for_its_generation_and_before_its_deadline(pages, generation, deadline_ns, now_ns, want):
    """One word decides: generation equal and time before the deadline."""
    writer, reader, _ = pages
    writer.write_lease(1, 7, deadline_ns)
    assert reader.live(1, generation, now_ns) is want


@pytest.mark.parametrize(
    ("generation", "deadline_ns", "stop", "now_ns", "want"),
    [
        pytest.param(7, 0, control.STOP_NONE, 5, False, id="no-lease-yet"),
        pytest.param(7, 2_000_000, control.STOP_NONE, 1_999_999, False, id="before-the-deadline"),
        pytest.param(7, 2_000_000, control.STOP_NONE, 2_000_000, True, id="at-the-deadline"),
        pytest.param(7, 2_000_000, control.STOP_DRAIN, 1_999_999, False, id="drains"),
        pytest.param(7, 0, control.STOP_KILL, 5, True, id="killed"),
        pytest.param(6, 2_000_000, control.STOP_NONE, 5, True, id="an-earlier-generation"),
    ],
)
def test_what_may_never_load_again_is_over(pages, generation, deadline_ns, stop, now_ns, want):
    """A slot that was just opened, and waits for its first lease, is not: its operation is not lost."""
    writer, reader, _ = pages
    writer.reset_slot(1, 7, epoch=1, sharers=1)
    writer.write_stop(1, 7, stop)
    writer.write_lease(1, 7, deadline_ns)
    assert reader.over(1, generation, now_ns) is want


def test_the_last_generation_and_a_deadline_of_eight_years_fit_into_the_word():
    """Packing keeps both fields apart at their upper ends."""
    deadline_ns = ((1 << 48) - 1) * 1_000
    assert unpack_lease(pack_lease(65_535, deadline_ns)) == (65_535, deadline_ns)


def test_nobody_but_the_guardian_can_map_the_control_page_writable(pages):
    """The seal refuses a writable mapping and a write to the descriptor."""
    _, _, fd = pages
    with pytest.raises(PermissionError):
        mmap.mmap(fd, control.PAGE_BYTES)
    with pytest.raises(PermissionError):
        os.pwrite(fd, b"x", 0)
    with pytest.raises(PermissionError):
        os.ftruncate(fd, 0)


def test_a_reader_cannot_store_through_its_mapping(pages):
    """The read view raises instead of writing."""
    _, reader, _ = pages
    with pytest.raises(TypeError):
        reader.as_words()[control.HEADER_WORDS] = 1


def test_another_kind_of_page_is_refused():
    """A page without our header raises ValueError."""
    fd = os.memfd_create("other")
    os.ftruncate(fd, control.PAGE_BYTES)
    with pytest.raises(ValueError, match="not a page"):
        ControlPage.from_fd(fd)
    os.close(fd)


@pytest.mark.parametrize(("slot", "word"), [(-1, 0), (control.SLOTS, 0), (0, control.SLOT_WORDS), (0, -1)])
def test_a_word_outside_of_the_page_is_an_index_error(slot, word):
    """No index reaches into a neighbour or the header."""
    with pytest.raises(IndexError):
        control.word_index(slot, word)


def test_stats_of_a_load_are_read_by_others_and_begin_anew():
    """What a load stores is read through another mapping; `begin` clears what an earlier load left."""
    page, fd = StatsPage.create()
    other = StatsPage.from_fd(fd)
    page.begin(3, 11, 4_242)
    page.put(3, control.STATE, control.LOAD_RUNNING)
    page.put_float(3, control.ASKED, 0.5)
    page.put_float(3, control.OWN, 0.375)
    page.put(3, control.CPU, 1 << 40)
    read = other.read(3)
    assert (read.generation, read.pid, read.state, read.asked, read.own, read.cpu_ns) == (11, 4_242, 3, 0.5, 0.375, 1 << 40)
    other.begin(3, 12, 1)
    assert page.read(3).cpu_ns == 0
    assert page.read(3).generation == 12
    for one in (page, other):
        one.close()
    os.close(fd)


def test_the_words_can_be_seen_as_an_array():
    """Kernels map the page without copying."""
    numpy = pytest.importorskip("numpy")
    writer, fd = ControlWriter.create()
    words = numpy.frombuffer(writer.as_words(), dtype=numpy.uint64)
    writer.write_lease(0, 3, 5_000)
    assert int(words[control.word_index(0, control.LEASE)]) == pack_lease(3, 5_000)
    os.close(fd)

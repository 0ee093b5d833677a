"""The journal and the effects on disk: what is armed survives, what is not ours stays as it is."""

from __future__ import annotations

import errno
import fcntl
import os

import pytest

from actors.errors import InputError
from actors.guardian.files import Files
from actors.undo import KINDS, RECORDS_MAX, SLOT_BYTES, TREE_TOKEN_FILE, Journal, JournalError, Record, decode, encode


@pytest.fixture
def folder(tmp_path):
    fd = os.open(tmp_path, os.O_RDONLY)
    yield fd
    os.close(fd)


def journal_of(folder):
    journal = Journal(folder)
    return journal, journal.open()


def a_record(number=1, **fields):
    return Record(f"r{number}", "disk_fill", 0, 1, "c", "n", "run", "0.DiskFill@n", fields or {"path": "/x"})


def fill_record(path, token="t1", reserve=0):
    fields = KINDS["disk_fill"].check({"path": str(path), "token": token, "reserve_bytes": reserve})
    return Record(
        "r1",
        "disk_fill",
        0,
        1,
        fields={**fields, "file": f".stress-cluster-gid-{token}.fill", "tag": f"stress-cluster disk_fill gid r1 {token}"},
    )


def tree_record(path, token="secret"):
    return Record("r2", "tree", 0, 1, fields=KINDS["tree"].check({"path": str(path), "token": token}))


def grow(files, record, size, **how):
    while True:
        applied = files.apply(record, {"bytes": size, **how})
        assert applied.error is None, applied
        if not applied.more:
            return applied.achieved


class TestJournal:
    def test_what_was_armed_is_replayed_and_what_was_freed_is_not(self, folder):
        """Records survive reopening until they are freed."""
        journal, found = journal_of(folder)
        assert found == []
        records = [a_record(number) for number in range(5)]
        for record in records:
            journal.arm(record)
        journal.free("r2")
        journal.free("r2")
        journal.close()
        again, found = journal_of(folder)
        assert sorted(record.id for record in found) == ["r0", "r1", "r3", "r4"]
        assert next(record for record in found if record.id == "r3") == records[3]
        for record in found:
            again.free(record.id)
        again.close()
        assert journal_of(folder)[1] == []

    @pytest.mark.parametrize("kept", [0, 3, 20, 40])
    def test_a_torn_slot_is_counted_and_hides_no_other_record(self, folder, tmp_path, kept):
        """A write that broke off was never acknowledged; the records beside it are whole."""
        journal, _ = journal_of(folder)
        journal.arm(a_record(1))
        data = encode(a_record(2), 7)[:kept]
        place = journal._free[-1]
        journal.close()
        with (tmp_path / "journal").open("r+b") as file:
            file.seek(place * SLOT_BYTES)
            file.write(data)
        again, found = journal_of(folder)
        assert [record.id for record in found] == ["r1"]
        assert again.torn == (kept > 0)
        again.arm(a_record(3))
        assert {record.id for record in journal_of(folder)[1]} == {"r1", "r3"}

    def test_every_flipped_byte_of_a_record_is_noticed(self):
        """The checksum covers header and payload."""
        data = encode(a_record(), 1)
        size = len(data.rstrip(b"\0"))
        for place in range(size):
            broken = data[:place] + bytes([data[place] ^ 0x41]) + data[place + 1 :]
            assert not isinstance(decode(broken), Record)

    def test_arming_fails_closed_when_the_sync_fails(self, folder, monkeypatch):
        """Without a synced record there is an error with the code `journal`, and no record after a restart."""
        journal, _ = journal_of(folder)

        def broken(_):
            raise OSError(5, "input/output error")

        monkeypatch.setattr(os, "fdatasync", broken)
        with pytest.raises(JournalError) as caught:
            journal.arm(a_record())
        assert caught.value.code == "journal"
        monkeypatch.undo()
        assert journal_of(folder)[1] == []
        journal.arm(a_record(2))

    def test_a_full_journal_refuses_and_takes_again_after_a_free(self, folder, monkeypatch):
        """The number of records is bounded."""
        monkeypatch.setattr(os, "fdatasync", lambda _: None)
        journal, _ = journal_of(folder)
        for number in range(RECORDS_MAX):
            journal.arm(a_record(number))
        with pytest.raises(JournalError, match="full"):
            journal.arm(a_record(RECORDS_MAX))
        journal.free("r7")
        journal.arm(a_record(RECORDS_MAX))

    def test_a_record_that_does_not_fit_is_refused(self, folder):
        """Nothing is cut off silently."""
        journal, _ = journal_of(folder)
        with pytest.raises(InputError, match="shorter"):
            journal.arm(a_record(path="/" + "x" * 5_000))

    def test_an_unknown_kind_is_kept(self, folder):
        """What this version cannot undo stays in the journal for one that can."""
        journal, _ = journal_of(folder)
        journal.arm(Record("future", "qdisc", 0, 1, version=9))
        journal.close()
        assert [(record.id, record.kind, record.version) for record in journal_of(folder)[1]] == [("future", "qdisc", 9)]

    def test_a_symbolic_link_in_place_of_the_journal_is_refused(self, folder, tmp_path):
        """The journal is never written through a link."""
        (tmp_path / "elsewhere").write_bytes(b"precious")
        (tmp_path / "journal").symlink_to(tmp_path / "elsewhere")
        with pytest.raises(JournalError):
            journal_of(folder)
        assert (tmp_path / "elsewhere").read_bytes() == b"precious"


class TestKinds:
    @pytest.mark.parametrize(
        ("kind", "fields"),
        [
            ("disk_fill", {}),
            ("disk_fill", {"path": "relative", "token": "t"}),
            ("disk_fill", {"path": "/a/../etc", "token": "t"}),
            ("disk_fill", {"path": "/proc/1", "token": "t"}),
            ("disk_fill", {"path": "/sys", "token": "t"}),
            ("disk_fill", {"path": "/tmp", "token": "../../etc/passwd"}),
            ("disk_fill", {"path": "/tmp", "token": "t", "reserve_bytes": -1}),
            ("disk_fill", {"path": "/tmp\0x", "token": "t"}),
            ("tree", {"path": "/", "token": "t"}),
            ("tree", {"path": "/tmp/x"}),
            ("tree", {"path": "/tmp/x", "token": "t", "token_file": "../y"}),
            ("tree", {"path": "/tmp/x", "token": "t", "token_file": ".."}),
            ("session", {"sid": 1, "starttime": 5}),
            ("session", {"sid": True, "starttime": 5}),
            ("session", {"sid": 55}),
            ("process", {"pid": 5}),
        ],
    )
    def test_fields_that_could_reach_elsewhere_are_refused(self, kind, fields):
        """Records are validated before they are written."""
        with pytest.raises(InputError):
            KINDS[kind].check(fields)


class TestDiskFill:
    def test_a_fill_grows_shrinks_and_vanishes(self, tmp_path):
        """Blocks follow what is asked within 2 %, and undo leaves an empty folder."""
        files, record = Files(str(tmp_path)), fill_record(tmp_path / "fill")
        for size in (200 << 20, 30 << 20, 90 << 20):
            assert grow(files, record, size) == pytest.approx(size, rel=0.02)
        path = tmp_path / "fill" / record.fields["file"]
        assert path.stat().st_blocks * 512 == pytest.approx(90 << 20, rel=0.02)
        assert files.undo(record).result == "undone"
        assert files.verify(record).result == "undone"
        assert list((tmp_path / "fill").iterdir()) == []

    def test_a_file_system_without_fallocate_gets_real_blocks_too(self, tmp_path, monkeypatch):
        """The fallback writes, in small steps."""

        def refused(*_):
            raise OSError(95, "not supported")

        monkeypatch.setattr("actors.proc.allocate", refused)
        files, record = Files(str(tmp_path)), fill_record(tmp_path / "fill")
        assert grow(files, record, 5 << 20) == pytest.approx(5 << 20, rel=0.02)
        assert files.undo(record).result == "undone"

    @pytest.mark.parametrize("direct", [True, False], ids=["past-the-cache", "through-the-cache"])
    def test_written_blocks_come_from_one_small_buffer(self, tmp_path, monkeypatch, direct):
        """Asked to write, no block is only reserved; each call writes at most 8 MB of noise, and the cache never holds more than that."""
        chunks, synced, real, sync = [], [], os.pwritev, os.fdatasync

        def write(fd, buffers, offset):
            flags = fcntl.fcntl(fd, fcntl.F_GETFL)
            chunks.append((sum(map(len, buffers)), {buffer.obj for buffer in buffers}, bool(flags & os.O_DIRECT)))
            return real(fd, buffers, offset)

        if not direct:
            monkeypatch.setattr("actors.guardian.blocks._set_direct", lambda fd, *, on: False)
        monkeypatch.setattr(os, "pwritev", write)
        monkeypatch.setattr(os, "fdatasync", lambda fd: synced.append(sync(fd)))
        monkeypatch.setattr("actors.proc.allocate", lambda *_: pytest.fail("reserved"))
        files, record = Files(str(tmp_path)), fill_record(tmp_path / "fill")
        assert grow(files, record, 21 << 20, write=True) == pytest.approx(21 << 20, rel=0.02)
        assert sum(size for size, _, _ in chunks) + 4096 == 21 << 20
        assert max(size for size, _, _ in chunks) <= 8_000_000
        assert len(set.union(*(buffers for _, buffers, _ in chunks))) == 1
        assert {flag for _, _, flag in chunks} == {direct}
        assert len(synced) == (0 if direct else len(chunks))
        assert (tmp_path / "fill" / record.fields["file"]).read_bytes()[4096:].count(0) < 21 << 14
        assert files.undo(record).result == "undone"

    def test_a_file_system_that_takes_no_direct_write_is_written_through_the_cache(self, tmp_path, monkeypatch):
        """What says that it has direct access and then refuses it (EINVAL) is no failure."""
        real = os.pwritev

        def write(fd, buffers, offset):
            if fcntl.fcntl(fd, fcntl.F_GETFL) & os.O_DIRECT:
                raise OSError(errno.EINVAL, "no")
            return real(fd, buffers, offset)

        monkeypatch.setattr(os, "pwritev", write)
        files, record = Files(str(tmp_path)), fill_record(tmp_path / "fill")
        assert grow(files, record, 9 << 20, write=True) == pytest.approx(9 << 20, rel=0.02)

    @pytest.mark.parametrize("code", [errno.ENOSPC, errno.EDQUOT])
    def test_no_room_is_told_by_its_number_and_is_no_failure(self, tmp_path, monkeypatch, code):
        """A full disk or quota ends the growth; what there was before stays."""
        files, record = Files(str(tmp_path)), fill_record(tmp_path / "fill")
        held = grow(files, record, 2 << 20)

        def refused(*_):
            raise OSError(code, "no room")

        monkeypatch.setattr("actors.proc.allocate", refused)
        applied = files.apply(record, {"bytes": 9 << 20})
        assert (applied.achieved, applied.more, applied.error, applied.refused) == (held, False, None, errno.errorcode[code])

    def test_the_reserve_stays_free(self, tmp_path):
        """A reserve larger than what is free lets nothing grow, and that is no error."""
        free = os.statvfs(tmp_path).f_bavail * os.statvfs(tmp_path).f_frsize
        files, record = Files(str(tmp_path)), fill_record(tmp_path / "fill", reserve=free * 2)
        assert grow(files, record, 100 << 20) < 1 << 20
        assert files.apply(record, {"bytes": 100 << 20}).refused == "ENOSPC"
        files.undo(record)

    def test_undo_of_what_was_never_applied_and_undo_twice_change_nothing(self, tmp_path):
        """Undo is idempotent."""
        files, record = Files(str(tmp_path)), fill_record(tmp_path / "fill")
        assert files.undo(record).result == "undone"
        (tmp_path / "fill").mkdir()
        (tmp_path / "fill" / "neighbour").write_text("stays")
        assert files.undo(record).result == "undone"
        grow(files, record, 1 << 20)
        assert [files.undo(record).result, files.undo(record).result] == ["undone", "undone"]
        assert [one.name for one in (tmp_path / "fill").iterdir()] == ["neighbour"]

    def test_another_life_of_the_guardian_undoes_by_the_tag_alone(self, tmp_path):
        """Nothing but the record is needed, also for a file that had not got its tag yet."""
        record = fill_record(tmp_path / "fill")
        grow(Files(str(tmp_path)), record, 8 << 20)
        assert Files(str(tmp_path)).undo(record).result == "undone"
        (tmp_path / "fill" / record.fields["file"]).touch()
        assert Files(str(tmp_path)).undo(record).result == "undone"
        assert list((tmp_path / "fill").iterdir()) == []

    @pytest.mark.parametrize("shape", ["content", "link", "folder", "fifo", "swapped"])
    def test_what_is_not_ours_is_left_byte_for_byte(self, tmp_path, shape):
        """Other content, links, folders, pipes and a file put in our place are foreign and untouched."""
        fill = tmp_path / "fill"
        files, record = Files(str(tmp_path)), fill_record(fill)
        place, precious = fill / record.fields["file"], tmp_path / "precious"
        precious.write_bytes(b"precious" * 1_000)
        fill.mkdir()
        if shape == "content":
            place.write_bytes(b"other" * 2_000)
        elif shape == "link":
            place.symlink_to(precious)
        elif shape == "folder":
            place.mkdir()
        elif shape == "fifo":
            os.mkfifo(place)
        else:
            grow(files, record, 1 << 20)
            place.unlink()
            place.write_bytes(record.fields["tag"].encode() + b"\n" + b"copied" * 100)
        before = place.lstat()
        outcome = files.undo(record)
        assert outcome.result == "foreign", outcome
        assert outcome.detail
        after = place.lstat()
        assert (after.st_ino, after.st_size, after.st_mode, after.st_mtime_ns) == (
            before.st_ino,
            before.st_size,
            before.st_mode,
            before.st_mtime_ns,
        )
        assert precious.read_bytes() == b"precious" * 1_000

    def test_an_existing_foreign_file_is_never_filled(self, tmp_path):
        """Apply refuses to adopt what somebody else made."""
        record = fill_record(tmp_path / "fill")
        (tmp_path / "fill").mkdir()
        (tmp_path / "fill" / record.fields["file"]).write_bytes(b"other")
        applied = Files(str(tmp_path)).apply(record, {"bytes": 1 << 20})
        assert applied.error is not None
        assert applied.error[0] == "foreign"
        assert (tmp_path / "fill" / record.fields["file"]).read_bytes() == b"other"

    def test_a_missing_folder_elsewhere_is_an_error_not_a_new_folder(self, tmp_path):
        """Only a folder inside of STATE is made."""
        applied = Files(str(tmp_path / "state")).apply(fill_record(tmp_path / "absent"), {"bytes": 1})
        assert applied.error is not None
        assert applied.error[0] == "os"
        assert not (tmp_path / "absent").exists()


class TestTree:
    def make(self, tmp_path, token="secret"):
        tree = tmp_path / "tree"
        (tree / "deep" / "er").mkdir(parents=True)
        (tree / "deep" / "er" / "file").write_text("x")
        (tmp_path / "outside").write_text("stays")
        (tree / "link").symlink_to(tmp_path / "outside")
        (tree / "deep" / "dirlink").symlink_to(tmp_path)
        (tree / TREE_TOKEN_FILE).write_text(token + "\n")
        return tree

    def test_a_marked_tree_goes_and_what_its_links_lead_to_stays(self, tmp_path):
        """Links are removed, never followed."""
        tree, files = self.make(tmp_path), Files(str(tmp_path))
        record = tree_record(tree)
        assert files.verify(record).result == "pending"
        assert files.undo(record).result == "undone"
        assert files.verify(record).result == "undone"
        assert sorted(one.name for one in tmp_path.iterdir()) == ["outside"]
        assert files.undo(record).result == "undone"

    @pytest.mark.parametrize("shape", ["other-token", "no-token", "token-is-link", "link", "file"])
    def test_a_tree_without_our_token_is_left(self, tmp_path, shape):
        """Only the token inside makes it ours."""
        tree, files = self.make(tmp_path), Files(str(tmp_path))
        path = tree
        if shape == "other-token":
            (tree / TREE_TOKEN_FILE).write_text("another")
        elif shape == "no-token":
            (tree / TREE_TOKEN_FILE).unlink()
        elif shape == "token-is-link":
            (tree / TREE_TOKEN_FILE).rename(tmp_path / "token")
            (tree / TREE_TOKEN_FILE).symlink_to(tmp_path / "token")
        elif shape == "link":
            path = tmp_path / "alias"
            path.symlink_to(tree)
        else:
            path = tmp_path / "plain"
            path.write_text("x")
        before = sorted(str(one) for one in tmp_path.rglob("*"))
        assert files.undo(tree_record(path)).result == "foreign"
        assert sorted(str(one) for one in tmp_path.rglob("*")) == before

    def test_a_large_tree_goes_in_bounded_steps(self, tmp_path):
        """One step removes a bounded number of entries and keeps the token for the next."""
        tree, files = self.make(tmp_path), Files(str(tmp_path))
        for number in range(4_500):
            (tree / "deep" / str(number)).touch()
        results = []
        while not results or results[-1] == "pending":
            results.append(files.undo(tree_record(tree)).result)
            assert len(results) < 10
        assert len(results) >= 3
        assert not tree.exists()

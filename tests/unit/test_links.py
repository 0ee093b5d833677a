"""Connections with a peer: who dials whom, what a key lets in, and what becomes of an end whose other end goes."""

from __future__ import annotations

import errno
import os
import socket
from collections.abc import Iterator
from dataclasses import replace

import pytest
from support import held
from support.waiting import until

from actors.clock import VirtualClock
from actors.errors import InputError, RefusedError
from actors.exhaustion.links import Links
from actors.messages import Capacity, NodeSpec, Operation
from actors.simulator import record_of
from cluster.links import linked
from scenarios import plan as plans
from scenarios import text

CAPACITY = Capacity(4.0, 1 << 34, 1 << 40, 1, 10_000, 10_000, 10_000, 10_000, 10_000)
HEAD = "version: 1\nname: ring\nplan:\n"
SCENARIO = HEAD + "  Connections: {count: 7, peer: next}\n  for: 5s\n"
KEY = "5a" * 16


def nodes(*addresses: str) -> list[NodeSpec]:
    """Return a head and targets with these addresses."""
    return [NodeSpec("head", is_head=True), *(NodeSpec(f"n{at}", address=address) for at, address in enumerate(addresses, 1))]


def ring(*addresses: str, scenario: str = SCENARIO) -> dict[str, tuple[Operation, ...]]:
    """Return the operations of each target with their links."""
    some = nodes(*addresses)
    return dict(linked(plans.resolve(text.load(scenario), some, 1).by_node, some))


def test_each_node_dials_the_next_and_the_last_the_first() -> None:
    """Whom one dials is who listens there; all have one key, of this run alone."""
    links = [of[0].link for of in ring("10.0.0.1", "10.0.0.2", "10.0.0.3").values()]
    assert [link["listen"] for link in links] == [["10.0.0.1", 17_700], ["10.0.0.2", 17_700], ["10.0.0.3", 17_700]]
    assert [link["dial"] for link in links] == [links[1]["listen"], links[2]["listen"], links[0]["listen"]]
    assert len({link["key"] for link in links}) == 1
    assert len(links[0]["key"]) == 32
    assert ring("10.0.0.1", "10.0.0.2")["n1"][0].link["key"] != links[0]["key"]


def test_nodes_of_one_address_have_ports_of_their_own() -> None:
    """Two nodes on one machine, and a second load on each."""
    part = "  - Connections: {count: 7, peer: next, port: 2000}\n    for: 5s\n"
    found = ring("10.0.0.1", "10.0.0.1", scenario=f"{HEAD}  together:\n{part}{part}")
    assert sorted(one.link["listen"][1] for of in found.values() for one in of) == [2000, 2001, 2002, 2003]


def test_a_plan_keeps_no_key() -> None:
    """What is written of a run has no link; without a peer there is none."""
    some = nodes("10.0.0.1", "10.0.0.2")
    plan = plans.resolve(text.load(SCENARIO), some, 1)
    with_links = tuple(one for of in linked(plan.by_node, some).values() for one in of)
    assert all(one.link for one in with_links)
    assert replace(plan, operations=with_links).to_json() == plan.to_json()
    assert not ring("10.0.0.1", "", scenario=SCENARIO.replace("next", "self"))["n2"][0].link


@pytest.mark.parametrize(
    ("addresses", "said"),
    [
        pytest.param(["10.0.0.1"], "no other node holds it", id="alone"),
        pytest.param(["10.0.0.1", ""], "no IPv4 address of n2", id="no-address"),
        pytest.param(["10.0.0.1", "::1"], "no IPv4 address of n2", id="another-family"),
    ],
)
def test_no_peer_is_refused_before_anything_is_made(addresses: list[str], said: str) -> None:
    """The refusal says which operation and what is missing."""
    with pytest.raises(RefusedError, match=said):
        ring(*addresses)


def test_the_last_port_is_the_last() -> None:
    """More loads on one address than there are ports above the first are refused."""
    part = "  - Connections: {count: 1, peer: next, port: 65000}\n    for: 5s\n"
    with pytest.raises(RefusedError, match="port 65536"):
        ring("10.0.0.1", "10.0.0.1", scenario=f"{HEAD}  together:\n{part * 300}")


def test_a_load_that_was_not_told_its_peer_does_not_begin() -> None:
    """Made without a plan, it says what is missing."""
    one = Operation("0@n1", "Connections", "n1", 0.0, 9.0, "count", {"kind": "constant", "level": 3}, {"peer": "next"})
    with pytest.raises(InputError, match="nobody has told it which one"):
        record_of("Connections").make(one, CAPACITY, None)  # type: ignore[arg-type]


class Two:
    """Two loads on this machine, each the other's peer."""

    def __init__(self, *, orderly: bool = False) -> None:
        servers = [socket.create_server(("127.0.0.1", 0)) for _ in range(2)]
        self.ends = [list(one.getsockname()) for one in servers]
        for one in servers:
            one.close()
        mine, its = self.ends
        self.a = Links({"listen": mine, "dial": its, "key": KEY}, VirtualClock(), orderly=orderly)
        self.b = Links({"listen": its, "dial": mine, "key": KEY}, VirtualClock(), orderly=orderly)
        self.a.open()
        self.b.open()

    def seen(self) -> tuple[int, int, int, int]:
        """Return how many each has dialled, and accepted."""
        dialled = self.a.held, self.b.held
        return (*dialled, len(self.a._accepted), len(self.b._accepted))

    def close(self) -> None:
        for one in (self.a, self.b):
            for end in (*one._dialled.values(), *one._accepted.values(), *one._unknown.values(), one._listener):
                end.close()  # type: ignore[union-attr]
            one._ready.close()


@pytest.fixture(params=[False])
def two(request: pytest.FixtureRequest) -> Iterator[Two]:
    made = Two(orderly=request.param)
    yield made
    made.close()


def test_both_ends_are_established_and_both_are_closed(two: Two) -> None:
    """As many as asked in each direction; giving some back closes the peer's ends of them too, and at the end none is left."""
    before = held.established(os.getpid())
    two.a.take(5)
    two.b.take(3)
    until(lambda: two.seen() == (5, 3, 3, 5), 5, lambda: str(two.seen()))
    assert held.established(os.getpid()) - before == 8
    two.a.give_back(4)
    until(lambda: two.seen() == (1, 3, 3, 1), 5, lambda: str(two.seen()))
    two.a.give_back(1)
    two.b.give_back(3)
    assert two.a.figures() == two.b.figures() == {"load.sockets.waiting": 0.0}
    assert two.seen() == (0, 0, 0, 0)
    assert held.established(os.getpid()) == before


@pytest.mark.parametrize("two", [True], indirect=True)
def test_in_order_who_closes_first_has_them_in_time_wait(two: Two) -> None:
    """They are counted once the peer has closed its own ends."""
    two.a.take(4)
    until(lambda: two.seen() == (4, 0, 0, 4), 5, lambda: str(two.seen()))
    two.a.give_back(4)
    until(lambda: two.seen() == (0, 0, 0, 0), 5, lambda: str(two.seen()))
    assert two.a.figures() == {"load.sockets.waiting": 4.0} == {"load.sockets.waiting": float(held.time_wait(os.getpid(), two.ends[1][1]))}


def test_a_peer_that_closes_nothing_is_not_waited_for_long(two: Two) -> None:
    """Its ends here are closed at the end, whatever it does."""
    two.b.take(2)
    until(lambda: two.seen() == (0, 2, 2, 0), 5, lambda: str(two.seen()))
    two.a.figures()
    until(lambda: two.seen() == (0, 0, 0, 0), 5, lambda: str(two.seen()))


def test_nobody_comes_in_without_the_key(two: Two) -> None:
    """Wrong words and half of the key are closed at once; who says nothing takes no place among those that are held."""
    guests = [socket.create_connection(two.ends[0], timeout=5.0) for _ in range(3)]
    guests[0].sendall(b"x" * 16)
    guests[1].sendall(bytes.fromhex(KEY)[:7])
    until(lambda: not two.a.held and len(two.a._unknown) == 1, 5, lambda: f"{len(two.a._unknown)} unknown")
    assert not two.a._accepted
    guests[2].sendall(bytes.fromhex(KEY))
    until(lambda: not two.a.held and len(two.a._accepted) == 1, 5, lambda: f"{len(two.a._accepted)} accepted")
    for guest in guests:
        guest.close()


def test_a_peer_that_left_is_told_once_and_an_absent_one_refuses(two: Two) -> None:
    """What the peer closed is held no more and is ECONNRESET; then there is nobody who listens: ECONNREFUSED."""
    two.a.take(3)
    until(lambda: two.seen() == (3, 0, 0, 3), 5, lambda: str(two.seen()))
    for end in (*two.b._accepted.values(), two.b._listener):
        end.close()  # type: ignore[union-attr]
    two.b._accepted.clear()
    until(lambda: two.a.held == 0, 5, lambda: f"{two.a.held} held")
    for code in (errno.ECONNRESET, errno.ECONNREFUSED, errno.ECONNREFUSED):
        with pytest.raises(OSError) as told:  # by its number
            two.a.take(1)
        assert told.value.errno == code
    two.a.give_back(2)  # of none
    assert two.a.held == 0


def test_a_silent_peer_is_a_timeout(two: Two, monkeypatch: pytest.MonkeyPatch) -> None:
    """A handshake that nobody answers has the kernel's number for it."""

    def silent(*_: object) -> None:
        raise TimeoutError("timed out")

    monkeypatch.setattr(socket.socket, "connect", silent)
    with pytest.raises(TimeoutError) as told:
        two.a.take(1)
    assert told.value.errno == errno.ETIMEDOUT


def test_slow_handshakes_do_not_keep_it_from_its_lease(two: Two, monkeypatch: pytest.MonkeyPatch) -> None:
    """Where each takes 20 ms, a take of a hundred is left after the time between two looks, with what it has."""
    clock = two.a._clock
    assert isinstance(clock, VirtualClock)
    real = two.a._dial

    def slow() -> socket.socket:
        clock.advance(0.02)
        return real()

    monkeypatch.setattr(two.a, "_dial", slow)
    two.a.take(100)
    assert two.a.held == 3


def test_a_port_that_is_taken_is_said_with_what_to_set(two: Two) -> None:
    """Another load listens there already."""
    with pytest.raises(OSError, match=f"cannot listen on 127.0.0.1:{two.ends[0][1]}.*option 'port'"):
        Links({"listen": two.ends[0], "dial": two.ends[1], "key": KEY}, VirtualClock(), orderly=False).open()

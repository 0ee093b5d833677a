"""Where the connections of loads with a peer go: each node listens on its own address and dials the next one. Pure but for the key.

    h2 ──▶ h3 ──▶ h4 ──▶ h2        `peer: next` on three targets: each opens what is asked, and accepts as many

Addresses are those that Ray has of its nodes; ports are the option's, one further for each load that listens on the same address. The
key is made for each operation of a run, is in no plan, and lets a load tell its peer from anybody else who connects.
"""

from __future__ import annotations

import secrets
from collections.abc import Iterable, Mapping
from dataclasses import replace
from typing import Final

from actors.errors import RefusedError
from actors.messages import NodeSpec, Operation
from actors.simulator import record_of

KEY_BYTES: Final = 16
PORT_MAX: Final = 65_535

ByNode = Mapping[str, tuple[Operation, ...]]


def linked(by_node: ByNode, nodes: Iterable[NodeSpec]) -> ByNode:
    """Return the operations with a link in each of those that ask for a peer.

    Raises `RefusedError`: `no_target` where an operation has no second node, `capability` where an address is not known or ports run out.
    """
    rings: dict[str, list[Operation]] = {}
    for operation in (one for operations in by_node.values() for one in operations):
        if record_of(operation.kind).resolve_options(operation.options).get("peer") == "next":
            rings.setdefault(operation.id.rpartition("@")[0], []).append(operation)
    if not rings:
        return by_node
    addresses, taken, links = {node.name: node.address for node in nodes}, dict[str, int](), dict[str, dict[str, object]]()
    for ring in rings.values():
        links |= _ring(ring, addresses, taken)
    return {
        name: tuple(replace(one, link=links[one.id]) if one.id in links else one for one in operations)
        for name, operations in by_node.items()
    }


def _ring(ring: list[Operation], addresses: Mapping[str, str], taken: dict[str, int]) -> dict[str, dict[str, object]]:
    """Return the links of one operation's nodes; `taken` counts the listeners of each address."""
    if len(ring) < 2:
        message = f"{ring[0].id} has peer: next, and no other node holds it"
        raise RefusedError("no_target", message, "name two targets or more, or leave peer out: then both ends are on the node itself")
    ends = [_end(one, addresses.get(one.node, ""), taken) for one in ring]
    key = secrets.token_hex(KEY_BYTES)
    return {
        one.id: {"listen": mine, "dial": following, "key": key}
        for one, mine, following in zip(ring, ends, [*ends[1:], ends[0]], strict=True)
    }


def _end(operation: Operation, address: str, taken: dict[str, int]) -> list[object]:
    if not address or ":" in address:
        message = f"{operation.id} has a peer, and Ray knows no IPv4 address of {operation.node}, but {address!r}"
        raise RefusedError("capability", message, "leave that node out, or leave peer out")
    first = int(record_of(operation.kind).resolve_options(operation.options)["port"])
    port = first + taken.get(address, 0)
    taken[address] = taken.get(address, 0) + 1
    if port > PORT_MAX:
        raise RefusedError("capability", f"{operation.id} would listen on port {port}; the last one is {PORT_MAX}", "set a lower port")
    return [address, port]

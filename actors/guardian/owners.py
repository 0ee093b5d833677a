"""Who may speak to the guardian: hello, watched processes, and the fence between an agent and the one that replaced it. Pure."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, Final

from ..errors import InputError, RefusedError
from .engine import Engine
from .fields import PROTOCOL, integer, text
from .model import LOADING, Identified, Retire, Waiter

ROLES: Final = ("agent", "simulator", "driver", "cli")
FENCES_MAX: Final = 4_096


class Owners(Engine):
    """Says hello to callers and fences the agents that were replaced."""

    def _hello(self, waiter: Waiter, request: Mapping[str, Any], now_ns: int) -> None:
        role = text(request, "role")
        if role not in ROLES:
            raise InputError("invalid_value", f"role {role!r:.40} is none of {', '.join(ROLES)}")
        if request.get("protocol") != PROTOCOL:
            raise RefusedError("code_mismatch", f"this guardian speaks protocol {PROTOCOL}, the caller {request.get('protocol')!r:.20}")
        self._check_namespaces(request)
        code = request.get("code_id") or self.code_id
        if role != "cli" and code != self.code_id:
            self._refuse_other_code(waiter, str(code)[:40])
            return
        watch = request.get("watch") or ()
        if len(watch) > self._settings.watched_max:
            raise InputError("invalid_value", f"at most {self._settings.watched_max} processes can be watched, got {len(watch)}")
        pids = [integer({"watch": pid}, "watch", least=1) for pid in watch]
        if role in {"agent", "driver"}:
            self._admit(request, now_ns)
        elif pids:
            raise InputError("invalid_value", f"only an agent or driver is watched, not a {role}")
        self._peers[waiter.peer] = role
        self._idle_since_ns = -1
        self._watch_next(waiter, request, pids, now_ns)

    def _check_namespaces(self, request: Mapping[str, Any]) -> None:
        """Refuse a caller whose clock or pids mean something else here: its deadlines and identities would be wrong."""
        for name, ours in (("time_offset_ns", self.time_offset_ns), ("pid_ns", self._machine[1])):
            theirs = request.get(name, ours)
            if theirs != ours:
                raise RefusedError(
                    "unsupported",
                    f"the guardian lives in another namespace: its {name} is {ours}, the caller's {theirs!r:.40}",
                    "give each container a state folder of its own",
                )

    def _refuse_other_code(self, waiter: Waiter, code: str) -> None:
        retiring = self.idle and not any(role in {"agent", "driver"} for role in self._peers.values())
        self._reply(
            waiter,
            {
                "ok": False,
                "code": "busy",
                "message": f"a guardian of code {self.code_id} is at work in this state folder, the caller has {code}",
                "hint": "wait until its run has ended, or use the same version",
                "retiring": retiring,
            },
        )
        if retiring:
            self._out.append(Retire())

    def _watch_next(self, waiter: Waiter, request: Mapping[str, Any], pids: list[int], now_ns: int) -> None:
        if not pids:
            self._hold_caller(waiter, request, now_ns)
            return

        def found(result: Identified, then_ns: int) -> None:
            if result.identity is None:
                self._refuse(waiter, "lost", f"process {pids[0]} is to be watched but has ended")
                return
            owner = (text(request, "cluster"), text(request, "node"), integer(request, "incarnation"))
            self._watched.setdefault(result.identity, set()).add(owner)
            self._watch_next(waiter, request, pids[1:], then_ns)

        self._identify(pids[0], "", found)

    def _hold_caller(self, waiter: Waiter, request: Mapping[str, Any], now_ns: int) -> None:
        """Keep the caller's own process, `pid`: an agent's, or the simulator's of a slot. See `_look_at_owners`."""
        pid, role = integer(request, "pid", 0), request["role"]
        if not pid or role not in {"agent", "simulator"}:
            self._welcome(waiter, now_ns)
            return

        def found(result: Identified, then_ns: int) -> None:
            identity = result.identity
            if identity is None:
                self._refuse(waiter, "lost", f"process {pid} says hello but has ended")
                return
            if role == "agent":
                self._agents[identity] = (text(request, "cluster"), text(request, "node"), integer(request, "incarnation"))
            elif any(slot.key == key and slot.phase in LOADING for slot in self._slots.values()):
                self._simulators[identity] = key
            else:
                self._let_go(identity)
            self._welcome(waiter, then_ns)

        key = (0, 0) if role == "agent" else (integer(request, "slot"), integer(request, "generation"))
        self._identify(pid, "", found)

    def _welcome(self, waiter: Waiter, now_ns: int) -> None:
        self._serial += 1
        self._reply(
            waiter,
            {
                "ok": True,
                "guardian_id": self.guardian_id,
                "life": self.page_life,
                "code_id": self.code_id,
                "protocol": PROTOCOL,
                "boottime_ns": now_ns,
                "nonce": f"{self.life}-{self._serial}",
                "halt": {"generation": self.halt.generation, "on": self.halt.on},
                "pages": True,
                **self.facts,
            },
        )

    def _admit(self, request: Mapping[str, Any], now_ns: int) -> tuple[str, str]:
        """Check the fence token (epoch, incarnation) and return the owner; a newer incarnation ends what the older one left."""
        owner = (text(request, "cluster"), text(request, "node"))
        token = (integer(request, "epoch"), integer(request, "incarnation"))
        known = self._fences.get(owner)
        if known == token:
            return owner
        if known is not None and (token < known or token[1] < known[1]):  # nor may an older agent return with a newer epoch
            raise RefusedError("stale_epoch", f"{owner[1]} has a newer agent: epoch and incarnation {known}, not {token}")
        if len(self._fences) >= FENCES_MAX:
            self._drop_fences()
        self._fences[owner] = token
        if known is not None and known[1] != token[1]:
            self._forget_watches(owner, token[1])
            self._end_owner(owner, now_ns, "replaced by a newer agent", keep=token[1])
        return owner

    def _drop_fences(self) -> None:
        owners = {(slot.cluster, slot.node) for slot in self._slots.values()}
        self._fences = {owner: token for owner, token in self._fences.items() if owner in owners}

    def _forget_watches(self, owner: tuple[str, str], keep: int) -> None:
        self._agents = {identity: whose for identity, whose in self._agents.items() if whose[:2] != owner or whose[2] == keep}
        for identity, owners in list(self._watched.items()):
            owners -= {one for one in owners if one[:2] == owner and one[2] != keep}
            if not owners:
                del self._watched[identity]
                self._let_go(identity)

"""Who may read what at the metrics endpoint. Credentials lie in a file, hashed, and are neither logged nor shown.

    [[user]]
    name = "prometheus"
    password = "scrypt:16384:8:1:SALT:HASH"       # `python -m cluster.exporters.access` makes it from a line of standard input
    roles = ["metrics"]                           # metrics: /metrics; health: the reasons in /healthz and /readyz; both by default

    [[token]]
    name = "grafana"
    file = "/etc/stress-cluster/grafana.token"    # or hash = "scrypt:..."

Comparisons take the same time whatever is wrong, also for a name that is not known. Hashes are scrypt (RFC 7914), so a credential that
was right is remembered by a keyed digest of this process, and only the first scrape costs its tens of milliseconds.
"""

from __future__ import annotations

import base64
import binascii
import hashlib
import hmac
import secrets
import sys
import threading
import tomllib
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Final

from actors.errors import InputError

from .watched import Watched, read_private

ROLES: Final = ("metrics", "health")
TOKEN_CHARACTERS_MIN: Final = 16
CHALLENGES: Final = (
    ("WWW-Authenticate", 'Basic realm="stress-cluster", charset="UTF-8"'),
    ("WWW-Authenticate", 'Bearer realm="stress-cluster"'),
)
_COST: Final = (1 << 14, 8, 1)  # n, r, p: 16 MiB
_COST_MAX: Final = 1 << 17
_REMEMBERED_MAX: Final = 64
_SETTING: Final = "prometheus.auth_file"
_HINT: Final = "see `python -m cluster.exporters.access --help` for its form"


@dataclass(frozen=True, slots=True)
class Hash:
    """A salted hash of a secret."""

    cost: tuple[int, int, int]
    salt: bytes
    digest: bytes

    @classmethod
    def of(cls, secret: str, salt: bytes | None = None) -> Hash:
        """Return the hash of a secret, with a random salt by default."""
        salt = secrets.token_bytes(16) if salt is None else salt
        return cls(_COST, salt, _scrypt(secret, salt, _COST))

    @classmethod
    def parse(cls, text: str) -> Hash:
        """Return the hash that `text` wrote. Raises `ValueError`, which does not repeat it."""
        name, *cost, salt, digest = text.split(":")
        if name != "scrypt" or len(cost) != 3:
            raise ValueError("a hash is scrypt:N:R:P:SALT:HASH")
        n, r, p = (int(one) for one in cost)
        if not (1 < n <= _COST_MAX and n & (n - 1) == 0 and 1 <= r <= 16 and 1 <= p <= 4):
            raise ValueError("the costs of a hash are a power of two up to 131072, 1 to 16 and 1 to 4")
        made = cls((n, r, p), base64.b64decode(salt, validate=True), base64.b64decode(digest, validate=True))
        if len(made.salt) < 8 or len(made.digest) < 16:
            raise ValueError("a salt has at least 8 bytes, a hash at least 16")
        return made

    def text(self) -> str:
        """Return the form that a file holds."""
        return ":".join(["scrypt", *map(str, self.cost), _base64(self.salt), _base64(self.digest)])

    def fits(self, secret: str) -> bool:
        """Tell whether this is the hash of that secret."""
        return hmac.compare_digest(_scrypt(secret, self.salt, self.cost, len(self.digest)), self.digest)


@dataclass(frozen=True, slots=True)
class Principal:
    """Somebody who is known, and what they may see."""

    name: str
    roles: frozenset[str]


class Credentials:
    """Users and tokens of one file."""

    def __init__(
        self, users: Mapping[str, tuple[Hash, Principal]], tokens: tuple[tuple[Hash, Principal], ...], files: tuple[Path, ...] = ()
    ) -> None:
        self._users, self._tokens, self.files = users, tokens, files
        self._nobody = Hash.of(secrets.token_hex(16))
        self._key = secrets.token_bytes(32)
        self._known: dict[bytes, Principal] = {}
        self._lock, self._hashing = threading.Lock(), threading.Lock()

    def principal(self, authorization: str | None) -> Principal | None:
        """Return whom an Authorization header stands for, or None."""
        if authorization is None:
            return None
        mark = hmac.digest(self._key, authorization.encode("latin-1", "replace"), "sha256")
        with self._lock:
            known = self._known.get(mark)
        if known is not None:
            return known
        scheme, _, given = authorization.partition(" ")
        with self._hashing:  # one at a time: whoever guesses must not cost the node a core for each scrape
            found = self._found(scheme.lower(), given.strip())
        if found is not None:
            with self._lock:
                if len(self._known) >= _REMEMBERED_MAX:
                    self._known.clear()
                self._known[mark] = found
        return found

    def _found(self, scheme: str, given: str) -> Principal | None:
        if scheme == "basic":
            return self._basic(given)
        return self._bearer(given) if scheme == "bearer" else None

    def _basic(self, given: str) -> Principal | None:
        try:
            name, colon, password = base64.b64decode(given, validate=True).decode("utf-8").partition(":")
        except (binascii.Error, ValueError):
            return None
        kept, principal = self._users.get(name, (self._nobody, None))
        fits = kept.fits(password)
        return principal if fits and colon else None

    def _bearer(self, given: str) -> Principal | None:
        found = None
        for kept, principal in self._tokens:
            if kept.fits(given):  # all are tried: how many there are is no secret, which one fits is
                found = principal
        return found


def watched(path: Path) -> Watched[Credentials]:
    """Return the credentials of a file, read again when it or a token's file changes. Raises `InputError`."""
    return Watched((path,), lambda: read(path), lambda credentials: credentials.files)


def read(path: Path) -> Credentials:
    """Return the credentials of a file. Raises `InputError` (`invalid_setting`) that names the entry, and no secret."""
    try:
        document = tomllib.loads(read_private(path, _SETTING).decode("utf-8"))
    except ValueError:
        raise _wrong(path, "is not TOML") from None
    if unknown := set(document) - {"user", "token"}:
        raise _wrong(path, f"has {', '.join(sorted(unknown))}, and only user and token are known")
    users: dict[str, tuple[Hash, Principal]] = {}
    tokens: list[tuple[Hash, Principal]] = []
    for kind, keys in (("user", {"name", "password", "roles"}), ("token", {"name", "file", "hash", "roles"})):
        entries = document.get(kind, [])
        if not isinstance(entries, list):
            raise _wrong(path, f"must have [[{kind}]], twice bracketed")
        for at, entry in enumerate(entries, 1):
            principal = _principal(path, f"{kind} {at}", entry, keys)
            if kind == "token":
                tokens.append((_token_hash(path, principal.name, entry), principal))
            elif principal.name in users or ":" in principal.name:
                raise _wrong(path, f"has the user {principal.name!r} twice, or with a colon in its name")
            else:
                users[principal.name] = (_hash(path, principal.name, entry.get("password")), principal)
    if not users and not tokens:
        raise _wrong(path, "has neither users nor tokens, so nobody could read anything")
    files = tuple(Path(str(entry["file"])) for entry in document.get("token", []) if "file" in entry)
    return Credentials(users, tuple(tokens), files)


def _principal(path: Path, where: str, entry: Any, keys: set[str]) -> Principal:
    if not isinstance(entry, dict) or not isinstance(entry.get("name"), str) or not entry["name"]:
        raise _wrong(path, f"has a {where} without a name")
    if unknown := set(entry) - keys:
        raise _wrong(path, f"has {', '.join(sorted(unknown))} at {entry['name']!r}; known are {', '.join(sorted(keys))}")
    roles = entry.get("roles", list(ROLES))
    if not isinstance(roles, list) or not roles or not all(role in ROLES for role in roles):
        raise _wrong(path, f"gives {entry['name']!r} roles that are not among {', '.join(ROLES)}")
    return Principal(entry["name"], frozenset(roles))


def _token_hash(path: Path, name: str, entry: Mapping[str, Any]) -> Hash:
    if ("file" in entry) == ("hash" in entry):
        raise _wrong(path, f"must give the token {name!r} either a file or a hash")
    if "hash" in entry:
        return _hash(path, name, entry["hash"])
    token = read_private(Path(str(entry["file"])), _SETTING).decode("utf-8", "replace").strip()
    if len(token) < TOKEN_CHARACTERS_MIN:
        raise _wrong(path, f"names a token of {name!r} with less than {TOKEN_CHARACTERS_MIN} characters")
    return Hash.of(token)


def _hash(path: Path, name: str, text: Any) -> Hash:
    try:
        return Hash.parse(str(text))
    except ValueError:
        raise _wrong(path, f"has no hash for {name!r} that can be read: it is scrypt:N:R:P:SALT:HASH, never the secret itself") from None


def _wrong(path: Path, what: str) -> InputError:
    return InputError("invalid_setting", f"{_SETTING}: {path} {what}", _HINT)


def _scrypt(secret: str, salt: bytes, cost: tuple[int, int, int], size: int = 32) -> bytes:
    n, r, p = cost
    return hashlib.scrypt(secret.encode("utf-8", "surrogatepass"), salt=salt, n=n, r=r, p=p, maxmem=256 * n * r + (1 << 20), dklen=size)


def _base64(data: bytes) -> str:
    return base64.b64encode(data).decode("ascii")


def main() -> int:
    """Read a secret from standard input, never from the arguments, and print its hash."""
    if len(sys.argv) > 1:
        print(__doc__)
        return 0
    print(Hash.of(sys.stdin.readline().rstrip("\n")).text())
    return 0


if __name__ == "__main__":
    sys.exit(main())

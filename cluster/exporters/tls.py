"""TLS for the metrics endpoint: a certificate and its key from PEM files, version 1.2 or newer."""

from __future__ import annotations

import ssl
from pathlib import Path
from typing import Final

from actors.errors import InputError

from .watched import Watched, read_private

_HINT: Final = "both must be PEM files that belong together, the certificate with its chain, the key without a password"


def context_of(cert: Path, key: Path) -> ssl.SSLContext:
    """Return a server's context. Raises `InputError` (`invalid_setting`) that says which file is wrong."""
    read_private(key, "prometheus.tls_key")
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    context.minimum_version = ssl.TLSVersion.TLSv1_2
    try:
        context.load_cert_chain(cert, key, password=_no_password)
    except ssl.SSLError as error:
        what = "do not belong together" if "MISMATCH" in str(error.reason) else f"cannot be used ({error.reason or 'no PEM'})"
        raise InputError("invalid_setting", f"prometheus.tls_cert {cert} and prometheus.tls_key {key} {what}", _HINT) from None
    except OSError as error:
        raise InputError("invalid_setting", f"prometheus.tls_cert: {cert} cannot be read: {error.strerror}", _HINT) from None
    return context


def watched(cert: Path, key: Path) -> Watched[ssl.SSLContext]:
    """Return the context of these files, made again when a certificate is renewed."""
    return Watched((cert, key), lambda: context_of(cert, key))


def _no_password() -> str:
    """Answer instead of the terminal, where OpenSSL would ask otherwise."""
    return ""

"""TLS: `DB_SSLMODE` and `DB_SSLROOTCERT`, as in libpq, but with the system's CAs by default."""

import os
import ssl
from typing import Literal

from asyncpg import connect_utils

from handler.warm.settings import Settings, SettingsError, SslMode


def tls_context(settings: Settings) -> ssl.SSLContext | SslMode | Literal[False]:
    """Return asyncpg's `ssl` argument. Raises SettingsError.

    Call it once: loading the system's CA bundle takes 34 ms, a CA file 0.5 ms.
    """
    mode = settings.effective_sslmode
    if mode == "disable":
        return False  # None would mean "prefer", which takes a round trip if the server refuses TLS
    if mode in ("allow", "prefer"):
        # If ~/.postgresql is not accessible, libpq connects without a client certificate, but
        # asyncpg raises.
        if not os.access(os.path.expanduser("~/.postgresql"), os.X_OK):  # noqa: PTH111  # Path.expanduser raises without a home
            vars(connect_utils)["_dot_postgresql_path"] = lambda _: None
        return mode
    try:
        context = ssl.create_default_context(cafile=settings.sslrootcert)
    except OSError as error:  # ssl.SSLError is one
        raise SettingsError(
            f"DB_SSLROOTCERT: {error.strerror or error}. "
            "Allowed: the path of a readable PEM file with a CA certificate"
        ) from None
    if settings.auth != "iam":  # with `iam` it may be RDS Proxy, which may support only TLS 1.2
        context.minimum_version = ssl.TLSVersion.TLSv1_3
    context.check_hostname = mode == "verify-full"
    if mode == "require" and settings.sslrootcert is None:
        context.verify_mode = ssl.CERT_NONE  # as in libpq: `require` verifies only with a CA file
    return context

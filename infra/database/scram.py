"""SCRAM verifiers of passwords, in the format of Postgres.

A verifier is sent instead of the password, so that the password is in no log.
"""

from __future__ import annotations

import hashlib
import hmac
import os
import stringprep
import unicodedata
from base64 import b64decode, b64encode

#: Postgres's default of `scram_iterations`.
ITERATIONS = 4096
#: Characters that SASLprep forbids: RFC 4013, section 2.3, and those not in Unicode 3.2.
FORBIDDEN = (
    stringprep.in_table_a1,
    stringprep.in_table_c12,
    stringprep.in_table_c21_c22,
    stringprep.in_table_c3,
    stringprep.in_table_c4,
    stringprep.in_table_c5,
    stringprep.in_table_c6,
    stringprep.in_table_c7,
    stringprep.in_table_c8,
    stringprep.in_table_c9,
)


def verifier_of(password: str, salt: bytes | None = None) -> str:
    """Return the verifier of `password`, by default with a random salt."""
    salt = salt or os.urandom(16)
    salted = hashlib.pbkdf2_hmac("sha256", _prepared(password).encode(), salt, ITERATIONS)
    stored_key = hashlib.sha256(hmac.digest(salted, b"Client Key", "sha256")).digest()
    server_key = hmac.digest(salted, b"Server Key", "sha256")
    encoded = [b64encode(part).decode() for part in (salt, stored_key, server_key)]
    return f"SCRAM-SHA-256${ITERATIONS}:{encoded[0]}${encoded[1]}:{encoded[2]}"


def salt_of(verifier: str) -> bytes:
    return b64decode(verifier.split("$")[1].partition(":")[2])


def _prepared(password: str) -> str:
    """Apply SASLprep (RFC 4013) as Postgres does: a password that it forbids is used unchanged."""
    mapped = (
        " " if stringprep.in_table_c12(character) else character
        for character in password
        if not stringprep.in_table_b1(character)
    )
    prepared = unicodedata.normalize("NFKC", "".join(mapped))
    is_forbidden = any(forbids(character) for character in prepared for forbids in FORBIDDEN)
    if (
        password.isascii()
        or not prepared
        or is_forbidden
        or not _obeys_bidirectional_rule(prepared)
    ):
        return password
    return prepared


def _obeys_bidirectional_rule(text: str) -> bool:
    """Return whether text with right-to-left characters obeys RFC 3454, section 6."""
    right_to_left = [stringprep.in_table_d1(character) for character in text]
    if not any(right_to_left):
        return True
    return right_to_left[0] and right_to_left[-1] and not any(map(stringprep.in_table_d2, text))

"""TLS works with an unreadable home folder, and its errors name the cause and a remedy."""

import os
import ssl
import subprocess
import sys
from datetime import UTC, datetime, timedelta
from pathlib import Path

import asyncpg
import pytest
from cryptography import x509
from cryptography.hazmat.primitives import hashes, serialization
from cryptography.hazmat.primitives.asymmetric import ec
from cryptography.x509.oid import NameOID

from handler.warm.database.connection import connector
from handler.warm.database.tls import tls_context
from handler.warm.request_policy import classify
from infra.local import ROOT
from infra.local.stack import Stack
from tests.conftest import wait_for_transports_closed


def old_style_certificate(names: list[str]) -> tuple[str, str, str]:
    """Create a CA, a certificate and its key, as old `openssl` scripts do.

    The certificate has no authority key identifier.
    """
    now = datetime.now(UTC)
    ca_key, key = (ec.generate_private_key(ec.SECP256R1()) for _ in range(2))
    issuer = x509.Name([x509.NameAttribute(NameOID.COMMON_NAME, "an old CA")])

    def builder(subject: x509.Name, public: ec.EllipticCurvePublicKey) -> x509.CertificateBuilder:
        return (
            x509.CertificateBuilder(issuer, subject, public, x509.random_serial_number())
            .not_valid_before(now - timedelta(days=1))
            .not_valid_after(now + timedelta(days=1))
        )

    usage = x509.KeyUsage(False, False, False, False, False, True, True, False, False)
    ca = (
        builder(issuer, ca_key.public_key())
        .add_extension(x509.BasicConstraints(True, None), critical=True)
        .add_extension(usage, critical=True)
        .add_extension(
            x509.SubjectKeyIdentifier.from_public_key(ca_key.public_key()), critical=False
        )
        .sign(ca_key, hashes.SHA256())
    )
    alternatives = x509.SubjectAlternativeName([x509.DNSName(name) for name in names])
    leaf = (
        builder(x509.Name([]), key.public_key())
        .add_extension(alternatives, critical=True)
        .sign(ca_key, hashes.SHA256())
    )
    pem = serialization.Encoding.PEM
    return (
        ca.public_bytes(pem).decode(),
        leaf.public_bytes(pem).decode(),
        key.private_bytes(
            pem, serialization.PrivateFormat.PKCS8, serialization.NoEncryption()
        ).decode(),
    )


async def test_a_certificate_without_authority_key_identifier_is_explained(
    stack: Stack, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    ca, certificate, key = old_style_certificate(["localhost"])
    (tmp_path / "ca.pem").write_text(ca)
    with stack.another_pgbouncer() as bouncer:
        bouncer.stop()
        bouncer.account.write(bouncer.folder / "server.pem", certificate)
        bouncer.account.write(bouncer.folder / "server.key", key)
        bouncer.start()
        settings = stack.settings(
            through=bouncer, host="localhost", sslrootcert=tmp_path / "ca.pem"
        )
        context = tls_context(settings)
        assert isinstance(context, ssl.SSLContext)
        context.verify_flags |= ssl.VERIFY_X509_STRICT  # Python 3.13's default
        monkeypatch.setattr("handler.warm.database.connection.tls_context", lambda _: context)
        with pytest.raises(ssl.SSLCertVerificationError) as error_info:
            await connector(settings)()
        failure = classify(error_info.value)
        assert "Missing Authority Key Identifier" in failure.cause
        assert "authorityKeyIdentifier" in failure.hint
    await wait_for_transports_closed()


@pytest.mark.parametrize(
    ("message", "sqlstate"),
    [
        ('PAM authentication failed for user "app"', "28000"),  # RDS
        # RDS Proxy
        ("IAM authentication failed for the role app. Check the IAM token.", "28000"),
    ],
)
def test_a_rejected_token_names_the_host_it_was_signed_for(message: str, sqlstate: str) -> None:
    failure = classify(asyncpg.PostgresError.new({"S": "FATAL", "C": sqlstate, "M": message}))
    assert failure.cause == "authentication failed"
    assert "DB_HOST: use the endpoint, not an alias" in failure.hint


@pytest.mark.parametrize("sslmode", ["prefer", "allow"])
def test_an_unreadable_home_does_not_prevent_a_connection(
    stack: Stack, tmp_path: Path, sslmode: str
) -> None:
    """A service started by `sudo -u` has such a home: HOME is still root's."""
    home = tmp_path / "home"
    home.mkdir(mode=0)
    script = """
import asyncio, os
import asyncpg, handler.warm
from handler.warm.database.connection import connector
settings = handler.warm.load_settings()
"a".encode("idna")  # imported now, because the user `nobody` may not be able to read it
if os.getuid() == 0:
    os.setgroups([]); os.setgid(65534); os.setuid(65534)
async def main():
    connection = await connector(settings)()
    print(await connection.fetchval("SELECT 1"))
    await connection.close()
asyncio.run(main())
"""
    process = subprocess.run(
        [sys.executable, "-c", script],
        env={**os.environ, **stack.environment(), "DB_SSLMODE": sslmode, "HOME": str(home)},
        cwd=ROOT,
        capture_output=True,
        text=True,
        timeout=60,
    )
    assert process.stdout == "1\n", process.stderr

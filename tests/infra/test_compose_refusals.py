"""A wrong CA, a wrong password, a secret that is not there: each is refused, and says so."""

from pathlib import Path

import pytest
import trustme

from tests.conftest import eventually
from tests.infra.conftest import ON_COMPOSE, ComposeStack, Sandbox, docker

pytestmark = ON_COMPOSE


def instead_of(name: str, content: bytes, folder: Path) -> tuple[str, str]:
    """Words for `docker compose run` that put another file in the place of a secret."""
    (folder / name).write_bytes(content)
    return "--volume", f"{folder / name}:/run/secrets/{name}:ro"


def end_of(sandbox: Sandbox) -> tuple[int, str]:
    """Its exit status, once it has one, and what it said."""
    return int(docker("wait", sandbox.container)), sandbox.log()


OTHER_CA = trustme.CA(organization_name="Somebody else").cert_pem.bytes()


async def test_a_pgbouncer_of_another_ca_gets_no_password(
    compose: ComposeStack, tmp_path: Path
) -> None:
    with compose.sandbox("fleet", *instead_of("ca.pem", OTHER_CA, tmp_path)) as sandbox:
        login = f"appuser@{sandbox.address()}"
        before = compose.log("pgbouncer").count(login)  # others had this address
        assert sandbox.ask()["statusCode"] == 503
        assert "by the CA in DB_SSLROOTCERT" in sandbox.log()
        assert compose.log("pgbouncer").count(login) == before


async def test_a_postgres_of_another_ca_gets_no_login(
    compose: ComposeStack, tmp_path: Path
) -> None:
    with compose.sandbox("pgbouncer", *instead_of("ca.pem", OTHER_CA, tmp_path)) as bouncer:
        query = (
            "PGPASSWORD=$(cat /run/secrets/lookup-password) PGSSLMODE=require PGSSLROOTCERT=none "
            "psql -h 127.0.0.1 -p 6432 -U pooler_lookup -c 'SELECT 1' storefront 2>&1 || true"
        )

        def answer() -> str:
            return docker("exec", bouncer.container, "sh", "-c", query)

        eventually(lambda: "FATAL" in answer())  # at first: connection refused
        assert "certificate verify failed" in bouncer.log()


async def test_a_wrong_password_is_said_and_not_shown(
    compose: ComposeStack, tmp_path: Path
) -> None:
    wrong = instead_of("app-password", b"not-the-password", tmp_path)
    with compose.sandbox("fleet", *wrong) as sandbox:
        assert sandbox.ask()["statusCode"] == 503
        assert "authentication failed" in sandbox.log()
        assert "not-the-password" not in sandbox.log()
    assert "SASL authentication failed" in compose.log("pgbouncer")


@pytest.mark.parametrize(
    ("service", "secret"), [("fleet", "app-password"), ("pgbouncer", "lookup-password")]
)
@pytest.mark.parametrize("fault", ["absent", "empty"])
async def test_without_its_secret_it_does_not_start(
    compose: ComposeStack, tmp_path: Path, service: str, secret: str, fault: str
) -> None:
    options = (
        ("--volume", f"{tmp_path}:/run/secrets:ro")
        if fault == "absent"
        else instead_of(secret, b"", tmp_path)
    )
    with compose.sandbox(service, *options) as container:
        status, said = end_of(container)
    assert status != 0
    assert f"/run/secrets/{secret}" in said
    assert len(said.splitlines()) == 1

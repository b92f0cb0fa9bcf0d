"""A wrong CA, a wrong password and a missing secret are rejected and reported."""

from pathlib import Path

import pytest
import trustme

from tests.conftest import eventually
from tests.infra.conftest import ON_COMPOSE, ComposeStack, Sandbox, docker

pytestmark = ON_COMPOSE


def replacing_secret(name: str, content: bytes, folder: Path) -> tuple[str, str]:
    """Return options for `docker compose run` that replace the file of a secret."""
    (folder / name).write_bytes(content)
    return "--volume", f"{folder / name}:/run/secrets/{name}:ro"


def wait_for_exit(sandbox: Sandbox) -> tuple[int, str]:
    """Wait for the container to exit; return its exit status and output."""
    return int(docker("wait", sandbox.container)), sandbox.log()


OTHER_CA = trustme.CA(organization_name="Somebody else").cert_pem.bytes()


async def test_the_handler_sends_no_password_to_a_pgbouncer_of_another_ca(
    compose: ComposeStack, tmp_path: Path
) -> None:
    with compose.sandbox("fleet", *replacing_secret("ca.pem", OTHER_CA, tmp_path)) as sandbox:
        login = f"appuser@{sandbox.address()}"
        # The count is not 0 if another container had this address before.
        logins_before = compose.log("pgbouncer").count(login)
        assert sandbox.invoke()["statusCode"] == 503
        assert "from the CA in DB_SSLROOTCERT" in sandbox.log()
        assert compose.log("pgbouncer").count(login) == logins_before


async def test_pgbouncer_does_not_log_in_to_a_postgres_of_another_ca(
    compose: ComposeStack, tmp_path: Path
) -> None:
    with compose.sandbox("pgbouncer", *replacing_secret("ca.pem", OTHER_CA, tmp_path)) as bouncer:
        query = (
            "PGPASSWORD=$(cat /run/secrets/lookup-password) PGSSLMODE=require PGSSLROOTCERT=none "
            "psql -h 127.0.0.1 -p 6432 -U pooler_lookup -c 'SELECT 1' storefront 2>&1 || true"
        )

        def output() -> str:
            return docker("exec", bouncer.container, "sh", "-c", query)

        eventually(lambda: "FATAL" in output())  # at first: connection refused
        assert "certificate verify failed" in bouncer.log()


async def test_a_wrong_password_is_reported_and_not_shown(
    compose: ComposeStack, tmp_path: Path
) -> None:
    wrong_password = replacing_secret("app-password", b"not-the-password", tmp_path)
    with compose.sandbox("fleet", *wrong_password) as sandbox:
        assert sandbox.invoke()["statusCode"] == 503
        assert "authentication failed" in sandbox.log()
        assert "not-the-password" not in sandbox.log()
    assert "SASL authentication failed" in compose.log("pgbouncer")


@pytest.mark.parametrize(
    ("service", "secret"), [("fleet", "app-password"), ("pgbouncer", "lookup-password")]
)
@pytest.mark.parametrize("defect", ["absent", "empty"])
async def test_a_container_does_not_start_without_its_secret(
    compose: ComposeStack, tmp_path: Path, service: str, secret: str, defect: str
) -> None:
    options = (
        ("--volume", f"{tmp_path}:/run/secrets:ro")
        if defect == "absent"
        else replacing_secret(secret, b"", tmp_path)
    )
    with compose.sandbox(service, *options) as container:
        status, output = wait_for_exit(container)
    assert status != 0
    assert f"/run/secrets/{secret}" in output
    assert len(output.splitlines()) == 1

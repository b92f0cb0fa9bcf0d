"""Each hop of the stack has its own network, and the handler reaches PgBouncer only."""

import pytest
import yaml

from infra.local import ROOT
from tests.infra.conftest import ON_COMPOSE, ComposeStack

COMPOSE = yaml.safe_load((ROOT / "docker-compose.yml").read_text())
CONNECT = """
import socket, sys
try:
    socket.create_connection((sys.argv[1], int(sys.argv[2])), timeout=3).close()
    print("reached")
except OSError:
    print("not reached")
"""


def networks_of(service: str) -> set[str]:
    return set(COMPOSE["services"][service].get("networks", ["default"]))


def test_the_postgres_network_is_internal_and_excludes_the_handler() -> None:
    assert networks_of("postgres") == networks_of("migrate") == {"storage"}
    assert COMPOSE["networks"]["storage"] == {"internal": True}
    for service in ("handler", "fleet"):
        assert "storage" not in networks_of(service)


def test_the_handler_cannot_reach_the_internet() -> None:
    """Verified once with an external host, which was reachable only with masquerading."""
    options = COMPOSE["networks"]["default"]["driver_opts"]
    assert options == {"com.docker.network.bridge.enable_ip_masquerade": "false"}


def test_every_service_is_confined() -> None:
    for name, service in COMPOSE["services"].items():
        assert service["read_only"] is True, name
        assert service["cap_drop"] == ["ALL"], name
        assert service["security_opt"] == ["no-new-privileges:true"], name


@pytest.mark.parametrize(
    ("service", "host", "port", "outcome"),
    [("handler", "pgbouncer", 6432, "reached"), ("handler", "postgres", 5432, "not reached")],
)
@ON_COMPOSE
async def test_the_handler_reaches_pgbouncer_but_not_postgres(
    compose: ComposeStack, service: str, host: str, port: int, outcome: str
) -> None:
    words = ("exec", "-T", service, "python", "-c", CONNECT, host, str(port))
    assert compose(*words).strip() == outcome

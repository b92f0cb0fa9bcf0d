"""Peered PgBouncers, since 1.19, forward a cancel request to the one that has the query."""

import asyncio
import contextlib
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from handler.warm.database.connection import connector
from infra.local import system_packages
from infra.local.pgbouncer import PgBouncer
from infra.local.server import account
from infra.local.stack import Stack
from infra.local.tcp_proxy import TcpProxy

PROGRAM = system_packages.find_pgbouncer()
needs_peers = pytest.mark.skipif(
    PROGRAM is None or PROGRAM.version < (1, 19), reason="PgBouncer has peers since 1.19"
)
SLEEPING = "SELECT count(*) FROM pg_stat_activity WHERE state = 'active' AND query ~ '^SELECT pg_s'"


@contextlib.contextmanager
def two_pgbouncers(stack: Stack, *, peers: bool) -> Iterator[list[PgBouncer]]:
    with (
        stack.another_pgbouncer(settings={"peer_id": 1} if peers else {}) as first,
        stack.another_pgbouncer(settings={"peer_id": 2} if peers else {}) as second,
    ):
        bouncers = [first, second]
        if peers:  # added now, because the addresses were not known before
            for bouncer, (other, number) in zip(bouncers, [(second, 2), (first, 1)], strict=True):
                ini = bouncer.folder / "site.ini"
                peer = f"[peers]\n{number} = host={other.host} port={other.port}\n"
                bouncer.account.write(ini, ini.read_text() + peer)
                with bouncer.console() as console:
                    console.execute("RELOAD")
        yield bouncers


@needs_peers
@pytest.mark.parametrize("peers", [True, False], ids=["peers", "none"])
async def test_only_peers_forward_a_cancel_request_of_another_pgbouncer(
    stack: Stack, admin: Any, peers: bool
) -> None:
    with (
        two_pgbouncers(stack, peers=peers) as (first, second),
        TcpProxy(first.host, first.port) as balancer,
    ):
        certificates = "".join(bouncer.ca.read_text() for bouncer in (first, second) if bouncer.ca)
        ca = account().write(Path(stack.folder) / "peers.pem", certificates)
        settings = stack.settings(through=first, port=balancer.port, sslrootcert=ca)
        client = await connector(settings)()
        balancer.redirect_to(second.host, second.port)
        query = asyncio.create_task(client.fetchval("SELECT pg_sleep(3)"))
        async with asyncio.timeout(2):
            while not await admin.fetchval(SLEEPING):
                await asyncio.sleep(0.02)
        query.cancel()
        with contextlib.suppress(asyncio.CancelledError):
            await query
        with contextlib.suppress(TimeoutError):
            async with asyncio.timeout(1):
                while await admin.fetchval(SLEEPING):
                    await asyncio.sleep(0.02)
        assert await admin.fetchval(SLEEPING) == (0 if peers else 1)
        client.terminate()

"""Fault injectors that kill, restart, pause or fill PgBouncer, or leave state in its sessions."""

import asyncio
import contextlib
import socket
import struct
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager

import asyncpg
import pytest
import trustme

from tests.faults.injectors import SystemUnderTest, repeatedly

#: SSLRequest, the first message of a Postgres client that wants TLS.
SSL_REQUEST = struct.pack("!ii", 8, 80877103)
#: State that a client may leave on a server connection. The lock is shared, so nobody waits for it.
SESSION_STATE = (
    "SET search_path = pg_catalog",
    "SET default_transaction_read_only = on",
    "SET statement_timeout = 100",  # a shorter timeout would end the reset itself on a busy machine
    "LISTEN left_behind",
    "PREPARE left_behind AS SELECT 1",
    "SELECT pg_advisory_lock_shared(23)",
)


@asynccontextmanager
async def pgbouncer_killed(system: SystemUnderTest) -> AsyncIterator[None]:
    assert system.bouncer.process is not None
    system.bouncer.process.kill()
    system.bouncer.process.wait()
    yield
    await asyncio.to_thread(system.bouncer.start)


@asynccontextmanager
async def one_of_two_killed(system: SystemUnderTest) -> AsyncIterator[None]:
    """Kill one of two PgBouncers without the load balancer noticing."""
    _, second = system.bouncers
    assert second.process is not None
    clients = await asyncio.to_thread(second.show, "CLIENTS")
    assert any(client["user"] == system.stack.service.app for client in clients), (
        "no sandbox is connected to the second PgBouncer"
    )
    second.process.kill()
    second.process.wait()
    yield
    await asyncio.to_thread(second.start)


@asynccontextmanager
async def pgbouncer_restarted(system: SystemUnderTest) -> AsyncIterator[None]:
    async def restart() -> None:
        await asyncio.to_thread(system.bouncer.stop)
        await asyncio.to_thread(system.bouncer.start)

    async with repeatedly(restart, 1):
        yield


@asynccontextmanager
async def pgbouncer_paused(system: SystemUnderTest) -> AsyncIterator[None]:
    with await asyncio.to_thread(system.bouncer.console) as console:
        await asyncio.to_thread(console.execute, "PAUSE")  # returns once all queries have finished
        yield
        await asyncio.to_thread(console.execute, "RESUME")


@asynccontextmanager
async def pgbouncer_reloaded(system: SystemUnderTest) -> AsyncIterator[None]:
    with await asyncio.to_thread(system.bouncer.console) as console:

        async def reload() -> None:
            await asyncio.to_thread(console.execute, "RELOAD")

        async with repeatedly(reload, 0.1):
            yield


@asynccontextmanager
async def pgbouncer_full(system: SystemUnderTest) -> AsyncIterator[None]:
    """Disconnect every sandbox and fill PgBouncer with other clients."""
    system.proxy.refuse()
    system.proxy.reset_connections()
    async with contextlib.AsyncExitStack() as other_clients:

        async def take_connections() -> None:
            while True:
                client = await system.connect_as_client()
                other_clients.push_async_callback(client.close)

        with pytest.raises(asyncpg.PostgresError, match="no more connections allowed"):
            await take_connections()
        system.proxy.refuse(False)
        yield


@asynccontextmanager
async def unfinished_logins(system: SystemUnderTest) -> AsyncIterator[None]:
    """Disconnect every sandbox and fill PgBouncer with clients that never finish their logins.

    They request TLS and then send nothing.
    """
    system.proxy.refuse()
    system.proxy.reset_connections()
    with contextlib.ExitStack() as other_clients:
        for _ in range(int(system.bouncer.settings["max_client_conn"])):
            address = (system.bouncer.host, system.bouncer.port)
            client = other_clients.enter_context(socket.create_connection(address))
            client.sendall(SSL_REQUEST)
        system.proxy.refuse(False)
        yield
        # Wait until a login succeeds again: recovery is measured from here, with the clients still
        # connected.
        async with asyncio.timeout(6):
            while True:
                with contextlib.suppress(asyncpg.PostgresError):
                    await (await system.connect_as_client()).close()
                    return
                await asyncio.sleep(0.05)


@asynccontextmanager
async def session_state_left(system: SystemUnderTest) -> AsyncIterator[None]:
    """Leave session state behind repeatedly, on as many connections as there are callers."""

    async def leave_behind() -> None:
        clients = await asyncio.gather(*(system.connect_as_client() for _ in range(3)))
        for statement in SESSION_STATE:
            await asyncio.gather(*(client.execute(statement) for client in clients))
        for client in clients:
            await client.close()

    async with repeatedly(leave_behind, 0.2):
        yield


@asynccontextmanager
async def pool_exhausted(system: SystemUnderTest) -> AsyncIterator[None]:
    """Hold every server connection in an open transaction."""
    size = int(system.bouncer.settings["default_pool_size"])
    other_clients = [await system.connect_as_client() for _ in range(size)]
    for client in other_clients:
        await client.execute("BEGIN")

    async def keep_transactions_open() -> None:
        for client in other_clients:
            await client.execute("SELECT 1")

    async with repeatedly(keep_transactions_open, 0.5):
        yield
    for client in other_clients:
        await client.execute("ROLLBACK")
        await client.close()


@asynccontextmanager
async def certificate_of_another_ca(system: SystemUnderTest) -> AsyncIterator[None]:
    names = ("server.pem", "server.key")
    original = [(system.bouncer.folder / name).read_text() for name in names]
    untrusted = trustme.CA().issue_cert("localhost", system.bouncer.host)
    chain = b"".join(blob.bytes() for blob in untrusted.cert_chain_pems).decode()

    async def restart_with(*contents: str) -> None:
        await asyncio.to_thread(system.bouncer.stop)
        for name, content in zip(names, contents, strict=True):
            system.bouncer.account.write(system.bouncer.folder / name, content)
        await asyncio.to_thread(system.bouncer.start)

    await restart_with(chain, untrusted.private_key_pem.bytes().decode())
    yield
    await restart_with(*original)

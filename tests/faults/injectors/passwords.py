"""A fault injector that rotates the application's password while it is in use."""

import asyncio
import secrets
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from typing import Any

from infra.database.roles import set_password
from tests.faults.injectors import SystemUnderTest, repeatedly


@asynccontextmanager
async def password_rotated(system: SystemUnderTest) -> AsyncIterator[None]:
    """Rotate repeatedly with the steps of Secrets Manager.

    After each step, replace one sandbox, which logs in with the new password; the others keep their
    connections.
    """
    app = system.stack.service.app

    async def replace_sandbox() -> None:
        async with asyncio.timeout(10):
            while not (idle := [box for box in system.fleet.sandboxes if box.frozen]):
                await asyncio.sleep(0.01)
        await system.fleet.retire(idle[0])
        result = await system.fleet.invoke(system.stack.service.event, cold=True)
        assert result.error is None, result
        assert result.payload["statusCode"] == 200, result

    async def rotate(admin: Any, password: str) -> None:
        await asyncio.to_thread(system.secret_store.propose, password)
        await set_password(admin, app, password)
        await replace_sandbox()
        await asyncio.to_thread(system.secret_store.promote)
        await replace_sandbox()

    async with system.admin() as admin:
        try:
            async with repeatedly(lambda: rotate(admin, secrets.token_urlsafe(16)), 0.5):
                yield
            await rotate(admin, system.secret_store.password)
        finally:  # on any error too: the stack knows the role by this password
            await set_password(admin, app, system.secret_store.password)

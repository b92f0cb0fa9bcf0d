"""The application's password rotated while it is in use."""

import asyncio
import secrets
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from typing import Any

from infra.database.roles import APP, set_password
from tests.faults.breakages import Place, again_and_again
from tests.faults.traffic import READ


@asynccontextmanager
async def password_rotated(place: Place) -> AsyncIterator[None]:
    """By way of Secrets Manager's steps, again and again. After each that counts a sandbox is
    replaced, and the new one logs in with what it finds; the others go on with the connection they
    have."""

    async def replace_one() -> None:
        async with asyncio.timeout(10):
            while not (idle := [each for each in place.fleet.sandboxes if each.frozen]):  # noqa: ASYNC110  # it rings no bell
                await asyncio.sleep(0.01)
        await place.fleet.retire(idle[0])
        answer = await place.fleet.invoke(READ, cold=True)
        assert answer.error is None, answer
        assert answer.payload["statusCode"] == 200, answer

    async def rotate(admin: Any, password: str) -> None:
        await asyncio.to_thread(place.vault.propose, password)
        await set_password(admin, APP, password)
        await replace_one()
        await asyncio.to_thread(place.vault.promote)
        await replace_one()

    async with place.admin() as admin:
        try:
            async with again_and_again(lambda: rotate(admin, secrets.token_urlsafe(16)), 0.5):
                yield
            await rotate(admin, place.vault.password)
        finally:  # whatever went wrong: the stack knows it by that
            await set_password(admin, APP, place.vault.password)

"""Engines with the settings of the handler, which are disposed of at the end of a block."""

import asyncio
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager

from sqlalchemy.ext.asyncio import AsyncEngine

from handler.warm.database.engine import create_engine
from handler.warm.settings import Settings


@asynccontextmanager
async def handler_engines(settings: Settings, count: int) -> AsyncIterator[list[AsyncEngine]]:
    engines = [create_engine(settings, isolation_level="AUTOCOMMIT") for _ in range(count)]
    try:
        yield engines
    finally:
        await asyncio.gather(*(engine.dispose() for engine in engines))


@asynccontextmanager
async def handler_engine(settings: Settings) -> AsyncIterator[AsyncEngine]:
    async with handler_engines(settings, 1) as [engine]:
        yield engine

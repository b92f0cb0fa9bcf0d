"""Checks the requests of `[tool.warm-engine.traffic]` once, before minutes of traffic."""

import json

import asyncpg

from infra.local import LabError
from infra.local.fleet import Fleet
from infra.local.service import SAMPLE, Service
from infra.local.signals import run_async
from infra.local.stack import Stack
from tests.events import Event
from tests.faults.writes import Write, kind_of


def probe(service: Service) -> None:
    """Send one write and one read. Raises LabError if `make faults` could not use the answers."""
    if service.root == SAMPLE.root:
        return
    if service.traffic is None:
        raise LabError(f"{service.root}/pyproject.toml has no [tool.warm-engine.traffic]")
    with Stack(service=service) as stack:
        run_async(_probe, stack)


async def _probe(stack: Stack) -> None:
    kind, write = kind_of(stack.service), Write("probe-1", "probe, value 1")
    logs = stack.folder / "probe"
    logs.mkdir(mode=0o700)
    service, shown = stack.service, _shown(kind.write(write))
    async with service.fleet(stack.environment(), concurrency=1, logs=logs) as fleet:
        await _send(fleet, service.event, f"the event in {service.event_file}", 200)
        answer = await _send(fleet, kind.write(write), shown, 200, 201)
        try:
            write.answer = json.loads(answer["body"])
        except ValueError:
            raise LabError(f"traffic: {shown} returned no JSON") from None
        shown = _shown(kind.read(write))
        answer = await _send(fleet, kind.read(write), shown, 200)
    if not kind.is_of(write, json.loads(answer["body"])):
        raise LabError(f"traffic: {shown} returned a body without {write.value!r}")
    admin = await asyncpg.connect(**stack.postgres.admin, database=service.database)
    try:
        lost, _ = await kind.count_lost_and_duplicated(admin, [write])
    except (asyncpg.PostgresError, ValueError) as error:
        raise LabError(f"traffic: rows failed: {error}") from None
    finally:
        await admin.close()
    if lost:
        raise LabError(f"traffic: rows does not return {write.key!r} with {write.value!r}")


def _shown(event: Event) -> str:
    request = event["requestContext"]["http"]
    return f"{request['method']} {request['path']}"


async def _send(fleet: Fleet, event: Event, shown: str, *expected: int) -> Event:
    """Return the response to `event`. Raises LabError if it has another status."""
    result = await fleet.invoke(event)
    if result.error:
        raise LabError(f"traffic: {shown} failed: {result.error}")
    answer: Event = result.payload
    if answer["statusCode"] not in expected:
        codes = " or ".join(map(str, expected))
        raise LabError(f"traffic: {shown} returned {answer['statusCode']} instead of {codes}")
    return answer

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
    """Send a write and a read. Raises LabError if `make faults` could not use the responses."""
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
    service, request = stack.service, _request_line(kind.write(write))
    async with service.fleet(stack.environment(), concurrency=1, logs=logs) as fleet:
        await _send(fleet, service.event, f"the event in {service.event_file}", 200)
        response = await _send(fleet, kind.write(write), request, 200, 201)
        try:
            write.response = json.loads(response["body"])
        except ValueError:
            raise LabError(f"traffic: {request} returned no JSON") from None
        request = _request_line(kind.read(write))
        response = await _send(fleet, kind.read(write), request, 200)
    if not kind.is_of(write, json.loads(response["body"])):
        raise LabError(f"traffic: {request} returned a body without {write.value!r}")
    admin = await asyncpg.connect(**stack.postgres.admin, database=service.database)
    try:
        lost, _ = await kind.count_lost_and_duplicated(admin, [write])
    except (asyncpg.PostgresError, ValueError) as error:
        raise LabError(f"traffic: rows failed: {error}") from None
    finally:
        await admin.close()
    if lost:
        raise LabError(f"traffic: rows does not return {write.key!r} with {write.value!r}")


def _request_line(event: Event) -> str:
    http = event["requestContext"]["http"]
    return f"{http['method']} {http['path']}"


async def _send(fleet: Fleet, event: Event, request: str, *expected: int) -> Event:
    """Return the response to `event`. Raises LabError if it has another status."""
    result = await fleet.invoke(event)
    if result.error:
        raise LabError(f"traffic: {request} failed: {result.error}")
    response: Event = result.payload
    if response["statusCode"] not in expected:
        codes = " or ".join(map(str, expected))
        raise LabError(f"traffic: {request} returned {response['statusCode']} instead of {codes}")
    return response

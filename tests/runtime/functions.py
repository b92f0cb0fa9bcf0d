"""Misbehaving functions that the tests run on the fleet."""

import json
import os
import sys
import time
import urllib.request
from collections.abc import Callable
from pathlib import Path
from typing import Any
from unittest import mock

Event = dict[str, Any]


def echo(event: Event, context: Any) -> Event:
    return {
        "event": event,
        "request_id": context.aws_request_id,
        "remaining_ms": context.get_remaining_time_in_millis(),
    }


def http_echo(event: Event, context: Any) -> Event:
    return {
        "statusCode": 202,
        "headers": {"x-test": "yes"},
        "cookies": ["a=1", "b=2"],
        "body": json.dumps(event),
    }


def fail(event: Event, context: Any) -> None:
    raise LookupError("no such thing")


def exit_process(event: Event, context: Any) -> None:
    sys.stdout.flush()
    os._exit(3)


def hang(event: Event, context: Any) -> None:
    time.sleep(60)


def large(event: Event, context: Any) -> str:
    return "x" * 7 * 2**20 if event.get("large") else "small"


def with_sigterm_handler(event: Event, context: Any) -> str:
    """Return a constant. The end of this module handles SIGTERM and registers an extension."""
    return "parked"


def unbounded(event: Event, context: Any) -> Any:
    """Read an id that is out of range in the route of order 2, as without validation."""
    from handler import orders

    find = orders.find
    return handle(event, context, find_order_2=lambda _: find(98765432100))


def with_closed_log(event: Event, context: Any) -> Any:
    """Close the log stream, and log in the route of order 2."""
    import logging

    from handler import orders

    reading, writing = os.pipe()
    os.dup2(writing, 1)
    os.close(writing)
    os.close(reading)
    find = orders.find

    async def find_and_log(order_id: int) -> Any:
        logging.getLogger("app").error("order %d", order_id)
        return await find(order_id)

    return handle(event, context, find_order_2=find_and_log)


def greedy(event: Event, context: Any) -> Any:
    """Request a second connection in the route of order 2, although the pool has only one."""
    from handler import orders
    from handler.warm.database import engine

    find = orders.find

    async def find_with_another(order_id: int) -> Any:
        async with engine.get_engine().connect():
            return await find(order_id)

    return handle(event, context, find_order_2=find_with_another)


def handle(event: Event, context: Any, find_order_2: Callable[[int], Any]) -> Any:
    """Serve the event with the sample's handler, which uses `find_order_2` to read order 2."""
    from handler import main, orders

    if not event["rawPath"].endswith("/2"):
        return main.handler(event, context)
    with mock.patch.object(orders, "find", find_order_2):
        return main.handler(event, context)


def register(name: str) -> None:
    """Register an internal extension during init, then wait for its next event, which never comes.

    With PARK=no it does not wait, so that the init phase never ends.
    """
    import threading

    api = f"http://{os.environ['AWS_LAMBDA_RUNTIME_API']}/2020-01-01/extension"
    request = urllib.request.Request(
        f"{api}/register", b'{"events": []}', {"Lambda-Extension-Name": name}
    )
    with urllib.request.urlopen(request) as response:
        identifier = response.headers["Lambda-Extension-Identifier"]
    if os.environ.get("PARK") == "no":
        return
    next_event = urllib.request.Request(
        f"{api}/event/next", headers={"Lambda-Extension-Identifier": identifier}
    )
    threading.Thread(target=urllib.request.urlopen, args=[next_event], daemon=True).start()


spin_until = time.monotonic() + float(os.environ.get("SPIN", 0))
while time.monotonic() < spin_until:
    pass

if "SIGTERM_FILE" in os.environ:
    import signal
    import threading

    if extension := os.environ.get("REGISTER"):
        register(extension)
    reading, writing = os.pipe()
    os.set_blocking(writing, False)
    signal.set_wakeup_fd(writing)
    signal.signal(signal.SIGTERM, lambda *_: None)

    def watch() -> None:
        os.read(reading, 1)
        Path(os.environ["SIGTERM_FILE"]).write_text("SIGTERM received")
        if os.environ.get("STUBBORN") != "yes":
            os._exit(0)

    threading.Thread(target=watch, daemon=True).start()

"""Functions that behave badly, for the fleet to run as Lambda would."""

import json
import os
import sys
import time
import urllib.request
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

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
        "headers": {"x-answer": "yes"},
        "cookies": ["a=1", "b=2"],
        "body": json.dumps(event),
    }


def fail(event: Event, context: Any) -> None:
    raise LookupError("no such thing")


def leave(event: Event, context: Any) -> None:
    sys.stdout.flush()
    os._exit(3)


def hang(event: Event, context: Any) -> None:
    time.sleep(60)


def large(event: Event, context: Any) -> str:
    return "x" * 7 * 2**20 if event.get("large") else "small"


def extended(event: Event, context: Any) -> str:
    """Its process says when SIGTERM came, and is an extension where the environment asks for it."""
    return "parked"


def unbounded(event: Event, context: Any) -> Any:
    """The handler, in whose route somebody forgot to bound the id; but for order 1."""
    from handler import main, orders

    if not event["rawPath"].endswith("/2"):
        return main.handler(event, context)
    find = orders.find
    with patched(orders, "find", lambda _: find(98765432100)):
        return main.handler(event, context)


def greedy(event: Event, context: Any) -> Any:
    """The handler, whose route for order 2 keeps the one connection while it asks for another."""
    from handler import engine, main, orders

    if not event["rawPath"].endswith("/2"):
        return main.handler(event, context)
    find = orders.find

    async def find_with_another(order_id: int) -> Any:
        async with engine.engine().connect():
            return await find(order_id)

    with patched(orders, "find", find_with_another):
        return main.handler(event, context)


@contextmanager
def patched(module: Any, name: str, value: Any) -> Iterator[None]:
    before = getattr(module, name)
    setattr(module, name, value)
    try:
        yield
    finally:
        setattr(module, name, before)


def register(name: str) -> None:
    """What an internal extension does during init: register, then wait in `next` for good."""
    import threading

    api = f"http://{os.environ['AWS_LAMBDA_RUNTIME_API']}/2020-01-01/extension"
    request = urllib.request.Request(  # noqa: S310  # the fleet's own address
        f"{api}/register", b'{"events": []}', {"Lambda-Extension-Name": name}
    )
    with urllib.request.urlopen(request) as answer:  # noqa: S310  # the fleet's own
        identifier = answer.headers["Lambda-Extension-Identifier"]
    if os.environ.get("PARK") == "no":
        return
    parked = urllib.request.Request(  # noqa: S310  # the fleet's own
        f"{api}/event/next", headers={"Lambda-Extension-Identifier": identifier}
    )
    threading.Thread(target=urllib.request.urlopen, args=[parked], daemon=True).start()


end = time.monotonic() + float(os.environ.get("SPIN", 0))
while time.monotonic() < end:
    pass

if "GOODBYE" in os.environ:
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
        Path(os.environ["GOODBYE"]).write_text("SIGTERM came")
        if os.environ.get("STUBBORN") != "yes":
            os._exit(0)

    threading.Thread(target=watch, daemon=True).start()

"""Shutdown: receives SIGTERM and exits the process."""

import http.client
import logging
import os
import signal
import sys
import threading
from collections.abc import Callable
from contextlib import suppress

log = logging.getLogger(__name__)

#: How long a clean shutdown may take, in seconds: less than the 0.3 s that Lambda allows if an
#: external extension is registered.
SHUTDOWN_TIMEOUT = 0.25


def call_at_shutdown(shut_down: Callable[[], None]) -> None:
    """Call `shut_down` and exit when Lambda ends the execution environment.

    This function must be called on the main thread during init. Outside Lambda it does nothing.

    Lambda sends SIGTERM only if there is an extension, so this process registers an internal one.
    A thread reads the signal from the wake-up descriptor, because a Python signal handler does not
    run while the runtime client waits for an event. See docs/decisions/shutdown-extension.md.
    """
    api = os.environ.get("AWS_LAMBDA_RUNTIME_API")
    if api is None:
        return
    _register_extension(api)
    read_end, write_end = os.pipe()
    os.set_blocking(write_end, False)
    signal.signal(signal.SIGTERM, lambda *_: None)
    signal.set_wakeup_fd(write_end, warn_on_full_buffer=False)

    def watch() -> None:
        while signal.SIGTERM not in os.read(read_end, 64):
            pass
        try:
            shut_down()
        finally:
            for stream in (sys.stdout, sys.stderr):
                with suppress(OSError, ValueError):  # the stream may be closed
                    stream.flush()
            os._exit(0)  # sys.exit would wait for threads and may hang

    threading.Thread(target=watch, name="shutdown", daemon=True).start()


def _register_extension(api: str) -> None:
    """Register an internal extension. If there are several processes, only the first succeeds."""
    # No timeout: after one, the extension could be registered without ever asking for its next
    # event, which init waits for. The runtime client calls the same service without a timeout.
    connection = http.client.HTTPConnection(api)
    headers = {"Lambda-Extension-Name": "warm-engine", "Content-Type": "application/json"}
    try:
        connection.request("POST", "/2020-01-01/extension/register", '{"events": []}', headers)
        response = connection.getresponse()
        response.read()
    except OSError as error:
        log.warning("registering the extension failed, no clean shutdown: %s", error)
        return
    finally:
        connection.close()
    if response.status != http.client.OK:
        log.info("extension not registered, no clean shutdown: status %d", response.status)
        return
    identity = {"Lambda-Extension-Identifier": response.headers["Lambda-Extension-Identifier"]}

    def wait_for_next_event() -> None:
        # Init ends only when the extension waits for an event. It subscribed to none.
        connection.request("GET", "/2020-01-01/extension/event/next", headers=identity)
        connection.getresponse()

    threading.Thread(target=wait_for_next_event, name="extension", daemon=True).start()

"""An interrupted command of the lab ends without a traceback."""

import gc
import signal
import socket
from typing import Any

import asyncpg
import pytest
from asyncpg.connect_utils import TLSUpgradeProto

from infra.local.signals import run_async, treat_sigterm_as_sigint


def test_an_interruption_while_a_connection_opens_logs_no_traceback(
    monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    def interrupt(*_: Any) -> None:
        signal.raise_signal(signal.SIGTERM)

    async def connect() -> None:
        with socket.create_server(("127.0.0.1", 0)) as server:
            host, port = server.getsockname()
            await asyncpg.connect(host=host, port=port, user="app", database="app")

    monkeypatch.setattr(TLSUpgradeProto, "connection_made", interrupt)
    treat_sigterm_as_sigint()
    with pytest.raises(KeyboardInterrupt):
        run_async(connect)
    gc.collect()
    assert not caplog.text

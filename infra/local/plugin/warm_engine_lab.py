"""pytest fixtures to test a service in the lab: `stack`, `lambda_handler`, `fleet` and `alembic`.

The plugin runs in the service's own interpreter, where `handler` and `infra` are the service's
packages, so it runs the lab as a separate process instead of importing it. Load it with
`-p warm_engine_lab` and this folder on the path. `WARM_ENGINE_PYTHON` is the lab's interpreter, by
default the one in its `.venv`.
"""

import contextlib
import importlib
import os
import runpy
import subprocess
import sys
import threading
from collections.abc import Callable, Iterator, Mapping
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass
from json import dumps, loads
from pathlib import Path
from types import SimpleNamespace
from typing import Any
from urllib.parse import urlencode

import pytest

LAB = Path(__file__).resolve().parents[3]
_API_GATEWAY = runpy.run_path(str(LAB / "infra/local/fleet/api_gateway.py"))


@dataclass(frozen=True)
class Response:
    """An HTTP response as a caller receives it."""

    status: int
    headers: dict[str, str]
    body: str

    def json(self) -> Any:
        return loads(self.body)


@dataclass(frozen=True)
class Invoker:
    """Invokes the handler with a Lambda event or with an HTTP request."""

    invoke: Callable[..., Any]

    def __call__(self, event: Any, **options: Any) -> Any:
        """Return the handler's response to a Lambda event."""
        return self.invoke(event, **options)

    def request(
        self,
        method: str,
        path: str,
        *,
        json: Any = None,
        query: Mapping[str, Any] | None = None,
        headers: Mapping[str, str] | None = None,
        **options: Any,
    ) -> Response:
        """Return the response to an HTTP request, as through API Gateway. `json`: the body."""
        body = b"" if json is None else dumps(json).encode()
        content_type = {"content-type": "application/json"} if body else {}
        event = _API_GATEWAY["api_gateway_event"](
            method,
            path,
            query=urlencode(query or {}),
            headers=(content_type | dict(headers or {})).items(),
            body=body,
        )
        result = self(event, **options)
        return Response(result["statusCode"], result.get("headers", {}), result.get("body", ""))


class Lab:
    """The lab's process: Postgres, PgBouncer and a fleet of this service's handler.

    `env`: the service's own variables, and `DB_*` of the application, through PgBouncer. `owner`:
    `DB_*` of the role that owns the tables, directly to Postgres, for migrations. `postgres` and
    `admin`: host, port, user and password of the superuser.
    """

    env: dict[str, str]
    owner: dict[str, str]
    postgres: dict[str, Any]
    admin: dict[str, str]

    def __init__(self, root: Path) -> None:
        python = os.environ.get("WARM_ENGINE_PYTHON") or str(LAB / ".venv/bin/python")
        self._process = process = subprocess.Popen(
            [python, "-m", "infra.local", "serve", "--root", str(root)],
            cwd=LAB,
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            text=True,
            env={name: value for name, value in os.environ.items() if name != "PYTHONPATH"},
            start_new_session=True,  # Ctrl-C reaches only pytest, which then stops the lab
        )
        assert process.stdin and process.stdout and process.stderr  # noqa: S101, PT018  # pipes
        self._stdin, self._stdout, self._stderr = process.stdin, process.stdout, process.stderr
        self._pending: dict[int, Future[dict[str, Any]]] = {}
        self._lock = threading.Lock()
        self._reader: threading.Thread | None = None
        self._last_error = "it printed no reason"
        self._error_reader = threading.Thread(target=self._read_errors, daemon=True)
        self._error_reader.start()

    def __enter__(self) -> "Lab":
        try:
            first_line = self._stdout.readline()
        except BaseException:  # Ctrl-C, or pytest's timeout
            self._process.terminate()
            self.__exit__()
            raise
        if not first_line:
            self.__exit__()
            pytest.exit(f"the lab did not start: {self._last_error}", returncode=1)
        vars(self).update(loads(first_line))
        self._reader = threading.Thread(target=self._read_results, daemon=True)
        self._reader.start()
        return self

    def __exit__(self, *_: object) -> None:
        with contextlib.suppress(OSError):
            self._stdin.close()
        self._process.wait()
        if self._reader is not None:
            self._reader.join()
        self._stdout.close()
        self._error_reader.join(timeout=10)

    def _read_errors(self) -> None:
        """Print stderr, and keep its last line because pytest.exit discards captured output."""
        with self._stderr as lines:
            for line in lines:
                self._last_error = line.strip() or self._last_error
                with contextlib.suppress(ValueError):  # pytest has closed its capture
                    print(line, end="", file=sys.stderr)

    def _read_results(self) -> None:
        for line in self._stdout:
            result = loads(line)
            self._pending.pop(result.pop("id")).set_result(result)
        for future in self._pending.values():
            future.set_exception(RuntimeError("the lab has exited"))

    def invoke(self, event: Any, *, cold: bool = False) -> dict[str, Any]:
        """Return the fleet's result: `payload`, `error`, `pid`, `ms` and `cold`."""
        future: Future[dict[str, Any]] = Future()
        with self._lock:
            self._pending[id(future)] = future
            request = {"id": id(future), "event": event, "cold": cold}
            self._stdin.write(dumps(request) + "\n")
            self._stdin.flush()
        return future.result(timeout=120)


@pytest.fixture(scope="session")
def stack(pytestconfig: pytest.Config) -> Iterator[Lab]:
    """Postgres behind PgBouncer, with the service's roles and migrations."""
    with Lab(pytestconfig.rootpath) as lab:
        yield lab


@pytest.fixture(scope="session")
def lambda_handler(stack: Lab) -> Iterator[Invoker]:
    """The service's handler in this process, on a thread of its own, through PgBouncer.

    It stays warm between tests. Coverage and breakpoints work.
    """
    with pytest.MonkeyPatch.context() as environment, ThreadPoolExecutor(1) as thread:
        for name, value in stack.env.items():
            environment.setenv(name, value)
        handler = thread.submit(importlib.import_module, "handler.main").result().handler
        yield Invoker(lambda event: thread.submit(handler, event, _context()).result())
        if loop := getattr(handler, "loop", None):
            thread.submit(loop.run, importlib.import_module("handler.warm").dispose).result()
            thread.submit(loop.close).result()


def _context() -> Any:
    """Return the part of Lambda's context that a handler reads."""
    return SimpleNamespace(
        aws_request_id="test",
        function_name="test",
        function_version="$LATEST",
        get_remaining_time_in_millis=lambda: 15_000,
    )


@pytest.fixture(scope="session")
def fleet(stack: Lab) -> Invoker:
    """The service's handler in separate execution environments, with the real runtime client.

    Up to ten threads can invoke it at the same time. `cold=True` starts a new environment.
    """

    def invoke(event: Any, *, cold: bool = False) -> Any:
        result = stack.invoke(event, cold=cold)
        if result["error"]:
            raise RuntimeError(f"{result['error']}: {result['payload']}")
        return result["payload"]

    return Invoker(invoke)


@pytest.fixture
def alembic(stack: Lab, pytestconfig: pytest.Config) -> Callable[..., str]:
    """A function that runs Alembic as the owner and returns its output, for example
    `alembic("check")`. It fails the test if Alembic fails."""

    def run(*words: str) -> str:
        result = subprocess.run(
            [sys.executable, "-m", "alembic", *words],
            cwd=pytestconfig.rootpath,
            env={**os.environ, **stack.owner},
            capture_output=True,
            text=True,
        )
        assert result.returncode == 0, result.stdout + result.stderr  # noqa: S101  # in a test
        return result.stdout

    return run

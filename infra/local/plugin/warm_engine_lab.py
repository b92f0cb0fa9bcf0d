"""pytest fixtures that test a service on the lab: `stack`, `lambda_handler` and `fleet`.

It runs in the service's own interpreter, where `handler` and `infra` are the service's packages, so
it imports nothing of the lab's: that is a process of its own. Load it with `-p warm_engine_lab`
and this folder on the path. `WARM_ENGINE_PYTHON` names the lab's interpreter, by default that of
its `.venv`.
"""

import contextlib
import importlib
import importlib.util
import json
import os
import subprocess
import sys
import threading
from collections.abc import Callable, Iterator, Mapping
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path
from types import SimpleNamespace
from typing import Any
from urllib.parse import urlencode

import pytest

LAB = Path(__file__).resolve().parents[3]


def _load(path: Path) -> Any:
    """A module of the lab's that stands alone, without its package."""
    spec = importlib.util.spec_from_file_location(path.stem, path)
    assert spec is not None  # noqa: S101  # a file that ends in .py has one
    assert spec.loader is not None  # noqa: S101
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


api_gateway = _load(LAB / "infra/local/fleet/api_gateway.py")


@dataclass(frozen=True)
class Response:
    """What a caller gets."""

    status: int
    headers: dict[str, str]
    body: str

    def json(self) -> Any:
        return json.loads(self.body)


class Invoker:
    """Invokes the handler: with any event, or as a caller over HTTP does."""

    def __init__(self, invoke: Callable[..., Any]) -> None:
        self.invoke = invoke

    def __call__(self, event: Any, **options: Any) -> Any:
        """The handler's answer to a Lambda event."""
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
        """What the API answers to an HTTP request. `json`: its body."""
        body = b"" if json is None else _encoded(json)
        given = {**({"content-type": "application/json"} if body else {}), **(headers or {})}
        event = api_gateway.api_gateway_event(
            method, path, query=urlencode(query or {}), headers=given.items(), body=body
        )
        answer = self(event, **options)
        return Response(answer["statusCode"], answer.get("headers", {}), answer.get("body", ""))


def _encoded(value: Any) -> bytes:
    return json.dumps(value).encode()


class Lab:
    """The lab's process: Postgres, PgBouncer and a fleet of this service's handler.

    `env`: `DB_*` of the application, through PgBouncer. `owner`: `DB_*` of the role that owns the
    tables, straight to Postgres, as Alembic needs them. `postgres` and `admin`: host, port, user
    and password of the superuser.
    """

    env: dict[str, str]
    owner: dict[str, str]
    postgres: dict[str, Any]
    admin: dict[str, str]

    def __init__(self, root: Path) -> None:
        python = os.environ.get("WARM_ENGINE_PYTHON") or str(LAB / ".venv/bin/python")
        self._process = subprocess.Popen(  # the lab's own
            [python, "-m", "infra.local", "serve", "--root", str(root)],
            cwd=LAB,
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            text=True,
            env={name: value for name, value in os.environ.items() if name != "PYTHONPATH"},
            start_new_session=True,  # Ctrl-C is for pytest, which then ends it
        )
        self._waiting: dict[int, Future[dict[str, Any]]] = {}
        self._lock = threading.Lock()
        self._reading: threading.Thread | None = None
        self._last_error = "it printed no reason"
        self._reading_errors = threading.Thread(target=self._read_errors, daemon=True)
        self._reading_errors.start()

    def __enter__(self) -> "Lab":
        assert self._process.stdout is not None  # noqa: S101  # a pipe, see above
        try:
            first = self._process.stdout.readline()
        except BaseException:  # Ctrl-C, or pytest's timeout
            self._process.terminate()
            self.__exit__()
            raise
        if not first:
            self.__exit__()
            pytest.exit(f"the lab did not start: {self._last_error}", returncode=1)
        vars(self).update(json.loads(first))
        self._reading = threading.Thread(target=self._read_results, daemon=True)
        self._reading.start()
        return self

    def __exit__(self, *_: object) -> None:
        assert self._process.stdin is not None  # noqa: S101  # a pipe, see above
        assert self._process.stdout is not None  # noqa: S101  # a pipe, see above
        with contextlib.suppress(OSError):
            self._process.stdin.close()
        self._process.wait()
        if self._reading is not None:
            self._reading.join()
        self._process.stdout.close()
        self._reading_errors.join(timeout=10)

    def _read_errors(self) -> None:
        """Keep the last line, because pytest discards captured output when it exits."""
        assert self._process.stderr is not None  # noqa: S101  # a pipe, see above
        with self._process.stderr as lines:
            for line in lines:
                self._last_error = line.strip() or self._last_error
                with contextlib.suppress(ValueError):  # pytest has closed its capture
                    print(line, end="", file=sys.stderr)

    def _read_results(self) -> None:
        assert self._process.stdout is not None  # noqa: S101  # a pipe, see above
        for line in self._process.stdout:
            result = json.loads(line)
            self._waiting.pop(result.pop("id")).set_result(result)
        for future in self._waiting.values():
            future.set_exception(RuntimeError("the lab ended"))

    def invoke(self, event: Any, *, cold: bool = False) -> dict[str, Any]:
        """What an invocation by the fleet came to: `payload`, `error`, `pid`, `ms` and `cold`."""
        assert self._process.stdin is not None  # noqa: S101  # a pipe, see above
        future: Future[dict[str, Any]] = Future()
        with self._lock:
            number = id(future)
            self._waiting[number] = future
            line = {"id": number, "event": event, "cold": cold}
            self._process.stdin.write(json.dumps(line) + "\n")
            self._process.stdin.flush()
        return future.result(timeout=120)


@pytest.fixture(scope="session")
def stack(pytestconfig: pytest.Config) -> Iterator[Lab]:
    """Postgres behind PgBouncer, with the service's roles and migrations."""
    with Lab(pytestconfig.rootpath) as lab:
        yield lab


@pytest.fixture(scope="session")
def lambda_handler(stack: Lab) -> Iterator[Invoker]:
    """The service's handler in this process, as a warm execution environment has it: on a thread
    of its own, through PgBouncer. Coverage and breakpoints work in it."""
    with pytest.MonkeyPatch.context() as environment, ThreadPoolExecutor(1) as thread:
        for name, value in stack.env.items():
            environment.setenv(name, value)
        module = thread.submit(importlib.import_module, "handler.main").result()
        handler = module.handler
        yield Invoker(lambda event: thread.submit(handler, event, _context()).result())
        if loop := getattr(handler, "loop", None):
            warm = importlib.import_module("handler.warm")
            thread.submit(loop.run, warm.dispose).result()
            thread.submit(loop.close).result()


def _context() -> Any:
    """As much of Lambda's context as a handler reads."""
    return SimpleNamespace(
        aws_request_id="test",
        function_name="test",
        function_version="$LATEST",
        get_remaining_time_in_millis=lambda: 15_000,
    )


@pytest.fixture(scope="session")
def fleet(stack: Lab) -> Invoker:
    """The service's handler in execution environments of their own, with the real runtime client:
    up to ten at once, by as many threads. `cold=True` starts a new one."""

    def invoke(event: Any, *, cold: bool = False) -> Any:
        result = stack.invoke(event, cold=cold)
        if result["error"]:
            raise RuntimeError(f"{result['error']}: {result['payload']}")
        return result["payload"]

    return Invoker(invoke)


@pytest.fixture
def alembic(stack: Lab, pytestconfig: pytest.Config) -> Callable[..., str]:
    """Run Alembic as the owner: `alembic("check")`. Returns what it printed; fails if it does."""

    def run(*words: str) -> str:
        done = subprocess.run(  # Alembic
            [sys.executable, "-m", "alembic", *words],
            cwd=pytestconfig.rootpath,
            env={**os.environ, **stack.owner},
            capture_output=True,
            text=True,
        )
        assert done.returncode == 0, done.stdout + done.stderr  # noqa: S101  # it is a test's
        return done.stdout

    return run

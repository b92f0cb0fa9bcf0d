"""The fleet serves events, enforces timeouts and ends sandboxes as the Lambda service does."""

import asyncio
import contextlib
import json
import re
import signal
import time
import venv
from collections.abc import AsyncIterator
from pathlib import Path

import aiohttp
import psutil
import pytest
from aiohttp import web

from infra.database.roles import APP
from infra.local import ROOT, LabError
from infra.local.fleet import Ending, Fleet, http_front_end
from infra.local.fleet.fork_server import ForkServer
from infra.local.fleet.http_front_end import api_gateway_event
from infra.local.stack import Stack
from tests.conftest import app_clients, eventually


def function(
    name: str,
    tmp_path: Path,
    *,
    timeout: float = 10.0,
    concurrency: int = 1,
    idle: float | None = None,
    **environment: str,
) -> Fleet:
    return Fleet(
        environment,
        handler=f"tests.runtime.functions.{name}",
        timeout=timeout,
        concurrency=concurrency,
        idle=idle,
        logs=tmp_path,
    )


async def test_the_function_receives_the_event_and_its_context(tmp_path: Path) -> None:
    async with function("echo", tmp_path, timeout=7) as fleet:
        first, second = await fleet.invoke({"n": 1}), await fleet.invoke([None, "ü"])
    assert (first.payload["event"], second.payload["event"]) == ({"n": 1}, [None, "ü"])
    assert first.payload["request_id"] == first.request_id != second.request_id
    assert 0 < first.payload["remaining_ms"] <= 7000
    assert (first.cold, second.cold) == (True, False)
    assert first.pid == second.pid


async def test_each_concurrent_event_gets_its_own_sandbox_up_to_the_limit(tmp_path: Path) -> None:
    async with function("echo", tmp_path, concurrency=2) as fleet:
        results = await asyncio.gather(*(fleet.invoke(number) for number in range(3)))
        assert [result.error for result in results] == [None, None, "TooManyRequestsException"]
        assert results[0].pid != results[1].pid
        assert (results[0].cold, results[1].cold) == (True, True)
        fourth = await fleet.invoke(3)
        assert fourth.pid in {result.pid for result in results}
        assert not fourth.cold
    assert not any(psutil.pid_exists(result.pid) for result in results[:2])


async def test_an_idle_sandbox_is_reaped(tmp_path: Path) -> None:
    async with function("echo", tmp_path, idle=0.2) as fleet:
        first = await fleet.invoke({})
        await asyncio.to_thread(eventually, lambda: not fleet.sandboxes, 5)
        assert (await fleet.invoke({})).pid != first.pid


async def test_a_forked_sandbox_behaves_like_any_other(stack: Stack, tmp_path: Path) -> None:
    with stack.another_pgbouncer() as bouncer:
        async with (
            ForkServer() as fork_server,
            Fleet(
                stack.environment(bouncer), concurrency=3, logs=tmp_path, fork_server=fork_server
            ) as fleet,
        ):
            read = api_gateway_event("GET", "/orders/1")
            results = await asyncio.gather(*(fleet.invoke(read) for _ in range(3)))
            assert {result.payload["statusCode"] for result in results} == {200}
            assert len({result.pid for result in results}) == 3
            [killed, *others] = fleet.sandboxes
            await fleet.retire(killed, Ending.KILL)
            assert killed.exit_status == -signal.SIGKILL
            for sandbox in others:
                await fleet.retire(sandbox)
                assert sandbox.exit_status == 0
        assert bouncer.log_since_start().count("closing because: client close request") == 2
    assert not any(psutil.pid_exists(result.pid) for result in results)


#: A service whose packages have the same names as this project's.
SERVICE = """
import sys
import infra
from handler import greeting

def handler(event, context):
    return {"greeting": greeting.TEXT, "infra": infra.__file__, "path": sys.path,
            "prefix": sys.prefix, "argv": sys.argv}
"""


@pytest.fixture
def service(tmp_path: Path) -> tuple[Path, str]:
    """Create a service and an interpreter without packages; return the folder and interpreter."""
    root = tmp_path / "service"
    for package in ("handler", "infra"):
        (root / package).mkdir(parents=True)
        (root / package / "__init__.py").touch()
    (root / "handler/main.py").write_text(SERVICE)
    (root / "handler/greeting.py").write_text("TEXT = 'from the service'")
    venv.create(tmp_path / "venv", symlinks=True)
    return root, str(tmp_path / "venv/bin/python")


@pytest.mark.parametrize("forked", [False, True], ids=["started", "forked"])
async def test_a_service_in_another_folder_runs_its_own_code_on_its_own_interpreter(
    service: tuple[Path, str], tmp_path: Path, forked: bool
) -> None:
    root, python = service
    async with contextlib.AsyncExitStack() as undo:
        fork_server = None
        if forked:
            fork_server = await undo.enter_async_context(ForkServer(root=root, python=python))
        fleet = Fleet({}, root=root, python=python, logs=tmp_path, fork_server=fork_server)
        payload = (await (await undo.enter_async_context(fleet)).invoke({})).payload
    assert payload["greeting"] == "from the service"
    assert payload["infra"] == str(root / "infra/__init__.py")
    assert payload["prefix"] == str(tmp_path / "venv")
    assert payload["path"][0] == str(root)
    assert not {path for path in payload["path"] if path.startswith(str(ROOT))}
    assert payload["argv"][1:] == ["handler.main.handler"]


async def test_an_interpreter_that_cannot_run_a_sandbox_is_rejected(tmp_path: Path) -> None:
    missing = str(tmp_path / "no-python")
    async with Fleet({}, python=missing) as fleet:
        with pytest.raises(LabError, match="no-python does not run"):
            await fleet.invoke({})


async def test_a_deployment_starts_new_sandboxes_beside_idle_ones(tmp_path: Path) -> None:
    async with function("echo", tmp_path, concurrency=2) as fleet:
        old = await fleet.invoke({})
        [sandbox] = fleet.sandboxes
        new = await fleet.invoke({}, cold=True)
        assert new.pid != old.pid
        assert await fleet.retire(sandbox)
        assert (await fleet.invoke({})).pid == new.pid


async def test_a_handler_exception_is_returned_and_the_sandbox_is_kept(tmp_path: Path) -> None:
    async with function("fail", tmp_path) as fleet:
        first, second = await fleet.invoke({}), await fleet.invoke({})
    assert first.error == "Unhandled" or first.error == "LookupError"
    assert first.payload["errorMessage"] == "no such thing"
    assert first.pid == second.pid


async def test_a_process_that_exits_during_an_invocation_is_replaced(tmp_path: Path) -> None:
    async with function("exit_process", tmp_path) as fleet:
        first, second = await fleet.invoke({}), await fleet.invoke({})
    assert first.error == "Runtime.ExitError"
    assert first.payload["errorMessage"] == "Runtime exited with error: exit status 3"
    assert second.cold
    assert first.pid != second.pid


async def test_a_module_that_fails_to_import_fails_the_init_phase(tmp_path: Path) -> None:
    async with Fleet({}, handler="tests.runtime.broken_at_import.handler", logs=tmp_path) as fleet:
        result = await fleet.invoke({})
        assert not fleet.sandboxes
    assert result.payload["errorMessage"] == "broken at import"


async def test_a_function_that_hangs_is_killed_at_its_timeout(tmp_path: Path) -> None:
    async with function("hang", tmp_path, timeout=0.5) as fleet:
        result = await fleet.invoke({})
        assert result.error == "Sandbox.Timedout"
        assert result.payload["errorMessage"] == "Task timed out after 0.50 seconds"
        assert not psutil.pid_exists(result.pid)


async def test_a_response_of_seven_megabytes_is_too_large(tmp_path: Path) -> None:
    async with function("large", tmp_path) as fleet:
        assert (await fleet.invoke({"large": True})).error == "Function.ResponseSizeTooLarge"
        assert (await fleet.invoke({})).payload == "small"


async def test_an_extension_that_never_polls_never_ends_the_init_phase(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("infra.local.fleet.sandbox.INIT_SECONDS", 2.0)
    fleet = function(
        "with_sigterm_handler", tmp_path, REGISTER="x", PARK="no", SIGTERM_FILE=str(tmp_path / "no")
    )
    async with fleet:
        assert (await fleet.invoke({})).error == "Sandbox.Timedout"
        assert not fleet.sandboxes


async def test_the_init_phase_is_limited_to_ten_seconds_of_processor_time(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("infra.local.fleet.sandbox.INIT_CPU_SECONDS", 0.5)
    async with function(
        "with_sigterm_handler", tmp_path, SPIN="60", SIGTERM_FILE=str(tmp_path / "no")
    ) as fleet:
        started = time.monotonic()
        assert (await fleet.invoke({})).error == "Sandbox.Timedout"
        assert time.monotonic() - started < 30


async def test_a_sandbox_without_an_extension_gets_no_sigterm(tmp_path: Path) -> None:
    sigterm_file = tmp_path / "sigterm"
    async with function("echo", tmp_path, SIGTERM_FILE=str(sigterm_file)) as fleet:
        await fleet.invoke({})
    assert not sigterm_file.exists()


async def test_a_sandbox_with_an_extension_gets_sigterm_and_may_exit(tmp_path: Path) -> None:
    sigterm_file = tmp_path / "sigterm"
    fleet = function(
        "with_sigterm_handler", tmp_path, REGISTER="warm", SIGTERM_FILE=str(sigterm_file)
    )
    async with fleet:
        result = await fleet.invoke({})
        assert result.payload == "parked"
    assert sigterm_file.read_text() == "SIGTERM received"
    assert not psutil.pid_exists(result.pid)


async def test_a_process_that_ignores_sigterm_is_killed_after_half_a_second(tmp_path: Path) -> None:
    sigterm_file = tmp_path / "sigterm"
    fleet = function(
        "with_sigterm_handler",
        tmp_path,
        REGISTER="x",
        SIGTERM_FILE=str(sigterm_file),
        STUBBORN="yes",
    )
    async with fleet:
        result = await fleet.invoke({})
        started = time.monotonic()
        await fleet.end()
        assert 0.5 <= time.monotonic() - started < 5
    assert sigterm_file.exists()
    assert not psutil.pid_exists(result.pid)


async def test_no_sandbox_outlives_a_killed_fleet(stack: Stack) -> None:
    """A frozen process cannot notice by itself that the fleet is gone."""
    script = (
        "import asyncio, os, signal\n"
        "from infra.local.fleet import Fleet\n"
        "async def main():\n"
        "    async with Fleet({}, handler='tests.runtime.functions.echo') as fleet:\n"
        "        print((await fleet.invoke({})).pid, flush=True)\n"
        "        [sandbox] = fleet.sandboxes\n"
        "        while not sandbox.frozen:\n"
        "            await asyncio.sleep(0.01)\n"
        "        os.kill(os.getpid(), signal.SIGKILL)\n"
        "asyncio.run(main())\n"
    )
    from tests.conftest import run

    _, output = run("-c", script)
    pid = int(output.split()[0])
    eventually(lambda: not psutil.pid_exists(pid) or psutil.Process(pid).status() == "zombie")


@pytest.fixture
async def base_url(tmp_path: Path) -> AsyncIterator[str]:
    """Start an HTTP front end to a function that returns its event, and return its URL."""
    async with function("http_echo", tmp_path) as fleet:
        runner = web.AppRunner(http_front_end.application(fleet), shutdown_timeout=0)
        await runner.setup()
        await web.TCPSite(runner, "127.0.0.1", 0).start()
        host, port = runner.addresses[0][:2]
        yield f"http://{host}:{port}"
        await runner.cleanup()


async def test_the_http_front_end_converts_requests_and_responses(base_url: str) -> None:
    async with aiohttp.ClientSession() as client:
        request = client.post(
            f"{base_url}/a%20b?x=1&x=2",
            data=b"\x00\xff",
            headers={"X-Name": "value", "Cookie": "a=1; b=2"},
        )
        async with request as response:
            event = json.loads(await response.read())
            assert response.status == 202
            assert response.headers["x-test"] == "yes"
            assert response.headers.getall("Set-Cookie") == ["a=1", "b=2"]
    assert event["version"] == "2.0"
    assert event["requestContext"]["http"]["method"] == "POST"
    assert (event["rawPath"], event["rawQueryString"]) == ("/a%20b", "x=1&x=2")
    assert event["headers"]["x-name"] == "value"
    assert event["cookies"] == ["a=1", "b=2"]
    assert (event["isBase64Encoded"], event["body"]) == (True, "AP8=")


async def test_a_hundred_requests_use_one_database_connection(own_stack: Stack) -> None:
    import asyncpg

    paths = ["/orders/1", "/orders/999999", "/orders/0", "/orders/2147483648", "/orders/abc"]
    async with Fleet(own_stack.environment()) as fleet:
        statuses = [
            (await fleet.invoke(api_gateway_event("GET", path))).payload["statusCode"]
            for path in paths * 20
        ]
        assert statuses == [200, 404, 422, 422, 422] * 20
        assert len(app_clients(own_stack.pgbouncer)) == 1
        admin = await asyncpg.connect(**own_stack.postgres.admin, database="postgres")
        backends = await admin.fetchval(
            "SELECT count(*) FROM pg_stat_activity WHERE usename = $1", APP
        )
        await admin.close()
        assert backends in (1, 2)


@pytest.mark.parametrize(
    ("variable", "value"), [("DB_PORT", "abc"), ("DB_SSLMODE", "maybe"), ("DB_POOL_SIZE", "0")]
)
async def test_an_invalid_setting_fails_the_init_phase_and_is_named(
    variable: str, value: str, tmp_path: Path
) -> None:
    async with Fleet({"DB_PASS": "hunter2", variable: value}, logs=tmp_path) as fleet:
        result = await fleet.invoke({})
    assert result.error == "SettingsError"
    assert result.payload["errorMessage"].startswith(f"{variable} is ")
    assert "hunter2" not in (tmp_path / "sandbox-1.log").read_text()


@pytest.mark.parametrize(
    ("environment", "message"),
    [
        ({}, "DB_HOST: unset, .*; DB_PASS: unset, .*DB_AUTH=secret or iam"),
        ({"DB_HOST": "db.internal"}, "DB_PASS: unset, "),
        ({"DB_HOST": "", "DB_PASS": "hunter2"}, "DB_HOST: unset, "),
    ],
    ids=["neither", "no way to log in", "no host"],
)
async def test_a_missing_host_or_credential_fails_the_init_phase_on_lambda(
    environment: dict[str, str], message: str, tmp_path: Path
) -> None:
    async with Fleet(environment, logs=tmp_path) as fleet:
        result = await fleet.invoke({})
    assert result.error == "SettingsError"
    assert re.fullmatch(f"{message}.*", result.payload["errorMessage"])
    assert "hunter2" not in (tmp_path / "sandbox-1.log").read_text()


async def test_the_caller_gets_503_with_retry_after_without_a_database(tmp_path: Path) -> None:
    environment = {"DB_HOST": "localhost", "DB_PORT": "1", "DB_PASS": "hunter2"}
    async with Fleet(environment, logs=tmp_path) as fleet:
        result = await fleet.invoke(api_gateway_event("GET", "/orders/1"))
        assert result.payload["statusCode"] == 503
        assert result.payload["headers"]["retry-after"] == "1"
        assert result.payload["headers"]["content-type"] == "application/problem+json"
        for path, status in (("/health", 200), ("/ready", 503)):
            result = await fleet.invoke(api_gateway_event("GET", path))
            assert result.payload["statusCode"] == status
    assert "hunter2" not in (tmp_path / "sandbox-1.log").read_text()

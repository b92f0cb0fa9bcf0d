"""The engine serves another application unchanged."""

import json
import shutil
import subprocess
import sys
from pathlib import Path

from infra.local import ROOT
from infra.local.stack import Stack
from tests.events import http_api

TEN_LINES = """
from fastapi import FastAPI
from sqlalchemy import text
from handler.warm import LambdaHandler, install, run

app = FastAPI()
install(app)

@app.get("/product")
async def product() -> int:
    return await run(lambda session: session.scalar(text("SELECT 6 * 7")))

handler = LambdaHandler(app)
"""

INVOKE = """
import json, sys
from handler.main import handler
for event in json.load(sys.stdin):
    print("response", json.dumps(handler(event, None)))
"""


def test_a_ten_line_application_runs_on_the_engine(stack: Stack, tmp_path: Path) -> None:
    shutil.copytree(ROOT / "handler", tmp_path / "handler")
    for name in ("app.py", "orders.py", "__main__.py"):
        (tmp_path / "handler" / name).unlink()
    (tmp_path / "handler" / "main.py").write_text(TEN_LINES)
    events = [http_api("GET", "/product"), http_api("GET", "/missing"), {"source": "aws.scheduler"}]
    process = subprocess.run(
        [sys.executable, "-c", INVOKE],
        cwd=tmp_path,
        env={"PATH": "", **stack.environment()},
        input=json.dumps(events),
        capture_output=True,
        text=True,
    )
    assert process.returncode == 0, process.stderr
    product, missing, scheduled = (
        json.loads(line.removeprefix("response "))
        for line in process.stdout.splitlines()
        if line.startswith("response ")
    )
    assert (product["statusCode"], product["body"]) == (200, "42")
    assert json.loads(missing["body"])["title"] == "Not Found"
    assert scheduled == {"warm": True}

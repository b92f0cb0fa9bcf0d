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

@app.get("/answer")
async def answer() -> int:
    return await run(lambda session: session.scalar(text("SELECT 6 * 7")))

handler = LambdaHandler(app)
"""

INVOKE = """
import json, sys
from handler.main import handler
for event in json.load(sys.stdin):
    print("answer", json.dumps(handler(event, None)))
"""


def test_a_ten_line_application_runs_on_the_engine(stack: Stack, tmp_path: Path) -> None:
    shutil.copytree(ROOT / "handler", tmp_path / "handler")
    for name in ("app.py", "orders.py", "__main__.py"):
        (tmp_path / "handler" / name).unlink()
    (tmp_path / "handler" / "main.py").write_text(TEN_LINES)
    events = [http_api("GET", "/answer"), http_api("GET", "/missing"), {"source": "aws.scheduler"}]
    done = subprocess.run(
        [sys.executable, "-c", INVOKE],
        cwd=tmp_path,
        env={"PATH": "", **stack.environment()},
        input=json.dumps(events),
        capture_output=True,
        text=True,
    )
    assert done.returncode == 0, done.stderr
    answers = [
        json.loads(line.removeprefix("answer "))
        for line in done.stdout.splitlines()
        if line.startswith("answer ")
    ]
    assert [answers[0]["statusCode"], answers[0]["body"]] == [200, "42"]
    assert json.loads(answers[1]["body"])["title"] == "Not Found"
    assert answers[2] == {"warm": True}

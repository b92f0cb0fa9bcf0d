"""The handler as SnapStart copies it; each answer tells what its process would draw next."""

import os
import random
import uuid
from typing import Any

from handler import main


def handler(event: Any, context: Any) -> dict[str, Any]:
    answer: dict[str, Any] = main.handler(event, context)
    drawn = {"random": random.random(), "uuid": str(uuid.uuid4())}  # noqa: S311  # what is tested
    return answer | drawn | {"pid": os.getpid()}

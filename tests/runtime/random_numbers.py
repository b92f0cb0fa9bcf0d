"""A handler for SnapStart that returns the next random numbers of its process."""

import os
import random
import uuid
from typing import Any

from handler import main


def handler(event: Any, context: Any) -> dict[str, Any]:
    answer: dict[str, Any] = main.handler(event, context)
    drawn = {"random": random.random(), "uuid": str(uuid.uuid4())}
    return answer | drawn | {"pid": os.getpid()}

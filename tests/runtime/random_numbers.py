"""A handler for SnapStart that returns the next random numbers of its process."""

import os
import random
import uuid
from typing import Any

from handler import main


def handler(event: Any, context: Any) -> dict[str, Any]:
    response: dict[str, Any] = main.handler(event, context)
    random_values = {"random": random.random(), "uuid": str(uuid.uuid4())}
    return response | random_values | {"pid": os.getpid()}

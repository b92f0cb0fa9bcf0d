"""Functions that cannot be examined, for different reasons."""

import os
import sys
import time
from typing import Any


def without_database(event: Any, context: Any) -> dict[str, Any]:
    return {"statusCode": 200, "body": "hello"}


def dying(event: Any, context: Any) -> None:
    print("out of luck", flush=True)
    os._exit(3)


def hanging(event: Any, context: Any) -> None:
    time.sleep(60)


def flooding(event: Any, context: Any) -> None:
    while True:
        sys.stdout.write("x" * 2**20 + "\n")


def asking_aws(event: Any, context: Any) -> None:
    raise ConnectionError('Could not connect to "https://ssm.eu-central-1.amazonaws.com/"')

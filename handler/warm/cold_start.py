"""Faster imports at a cold start.

A context manager, because a tool that sorts imports cannot move one out of its block.
"""

import gc
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any, cast


@contextmanager
def cheap_imports() -> Iterator[None]:
    """Import without garbage collection, unused pydantic models and pydantic 1.

    Measured on Python 3.11: garbage collection takes a tenth of a cold start's CPU, the models of
    FastAPI's OpenAPI document 25 to 40 ms (4 ms at the first request for it), pydantic 1 15 ms.
    Imported objects are never garbage, so they are frozen: later collections skip them.
    """
    collects = gc.isenabled()
    gc.disable()
    try:
        _defer_openapi_models()
        with _without_pydantic_1():
            yield
        gc.freeze()
    finally:
        if collects:
            gc.enable()


def _defer_openapi_models() -> None:
    """Let pydantic build the models of the OpenAPI document at their first use."""
    if "fastapi.openapi.models" in sys.modules:
        return
    from pydantic import BaseModel

    BaseModel.model_config["defer_build"] = True
    with _without_pydantic_1():
        import fastapi.openapi.models  # noqa: F401  # imported for its side effect
    del BaseModel.model_config["defer_build"]


@contextmanager
def _without_pydantic_1() -> Iterator[None]:
    """Hide pydantic 1, which FastAPI imports only to check whether a model is one of its models."""
    hidden = "pydantic.v1" not in sys.modules
    if hidden:
        sys.modules["pydantic.v1"] = cast(Any, None)
    try:
        yield
    finally:
        if hidden:
            del sys.modules["pydantic.v1"]

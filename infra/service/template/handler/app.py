"""The HTTP routes, with the models of requests and responses."""

from collections.abc import AsyncIterator, Sequence
from contextlib import asynccontextmanager
from typing import Annotated

from fastapi import FastAPI, HTTPException, Path, Query
from pydantic import BaseModel, ConfigDict, Field

from handler import [= name =]
from handler.warm import dispose, install, ping, prewarm, problem_responses


@asynccontextmanager
async def lifespan(_: FastAPI) -> AsyncIterator[None]:
    """Connect and disconnect on a long-running host such as uvicorn; Lambda does not run this."""
    await prewarm()
    yield
    await dispose()


app = FastAPI(
    title="[= title =]",
    version="0.1.0",
    lifespan=lifespan,
    # The response to a larger body is 413. Lambda itself allows 6 MiB.
    max_body_size=1024 * 1024,
    docs_url=None,
    redoc_url=None,
)
install(app)

# The limits of the columns; Postgres' text cannot contain NUL.
Key = Annotated[str, Path(min_length=1, max_length=64, pattern=r"^[\w.-]+$")]
Text = Annotated[str, Field(max_length=200, pattern=r"^[^\x00]*$")]


class Body(BaseModel):
    """The body of a write."""

    model_config = ConfigDict(extra="forbid")

    text: Text


class Row(BaseModel):
    """A row in a response."""

    model_config = ConfigDict(from_attributes=True)

    key: str
    text: str


@app.put(
    "/[= name =]/{key}",
    response_model=Row,
    responses=problem_responses(422),
)
async def put(key: Key, body: Body) -> Row:
    await [= name =].put(key, body.text)
    return Row(key=key, text=body.text)


@app.get(
    "/[= name =]/{key}",
    response_model=Row,
    responses=problem_responses(404, 422),
)
async def get(key: Key) -> [= name =].[= type_name =]:
    if (row := await [= name =].find(key)) is None:
        raise HTTPException(404, f"There is no {key}.")
    return row


@app.get(
    "/[= name =]",
    response_model=list[Row],
    responses=problem_responses(422),
)
async def page(
    after: str = "",
    limit: Annotated[int, Query(ge=1, le=100)] = 20,
) -> Sequence[[= name =].[= type_name =]]:
    return await [= name =].page(after, limit)


@app.get("/health")
async def health() -> dict[str, str]:
    """Check that the execution environment responds, without the database."""
    return {"status": "ok"}


@app.get("/ready", responses=problem_responses())
async def ready() -> dict[str, str]:
    """Check that the database responds as well."""
    await ping()
    return {"status": "ready"}

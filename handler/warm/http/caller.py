"""The caller, for a route: `identity: Annotated[str | None, Depends(caller)]`."""

from fastapi import Request

#: The key in the ASGI scope. The Lambda adapter sets it; elsewhere a middleware can.
CALLER = "warm.caller"


def caller(request: Request) -> str | None:
    """Return a text that identifies the authenticated caller, or None."""
    identity: str | None = request.scope.get(CALLER)
    return identity

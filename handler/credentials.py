"""Where a password comes from.

Owns the one small interface the engine's creator asks for each new raw connection, so that a
rotated password or a short-lived token is never older than the connection it opens.
"""

from collections.abc import Awaitable, Callable

from handler.settings import Settings

Credentials = Callable[[], Awaitable[str]]


def from_settings(settings: Settings) -> Credentials:
    """The source that `settings` names: today `DB_PASS`, read once at start."""

    async def password() -> str:
        return settings.password.get_secret_value()

    return password

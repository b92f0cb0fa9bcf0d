"""Environment → `Settings`.

Owns every `DB_*` variable: its default, what is allowed, and the one message a bad value gets.
Leaves what the values are used for to the engine. Nothing here ever prints a password.
"""

import contextlib
import ipaddress
from typing import Annotated, Any, Literal

from pydantic import Field, FilePath, SecretStr, ValidationError, field_validator, model_validator
from pydantic_settings import BaseSettings, SettingsConfigDict

SslMode = Literal["disable", "allow", "prefer", "require", "verify-ca", "verify-full"]
Auth = Literal["password", "secret", "iam"]
Prewarm = Literal["off", "on", "required"]
Name = Annotated[str, Field(min_length=1, max_length=63)]
Seconds = Annotated[float, Field(gt=0, allow_inf_nan=False)]
CA_FILE = "the path of a PEM file with the CA that signed the server's certificate"


class SettingsError(Exception):
    """A bad value in the environment. Its text is one line: the variable, its fault, the remedy."""


class Settings(BaseSettings):
    """How to reach the database. `description` says what is allowed; the comment above a field
    names the failure that the setting prevents. Times are in seconds."""

    # An empty variable counts as unset, as in libpq: compose files pass empty ones on.
    model_config = SettingsConfigDict(
        env_prefix="DB_", env_ignore_empty=True, frozen=True, extra="ignore", populate_by_name=True
    )

    host: str = Field(
        "localhost", min_length=1, description="a host name, an address or a socket's folder"
    )
    port: int = Field(5432, ge=1, le=65535, description="1 to 65535, the port of PgBouncer")
    name: Name = Field("storefront", description="a database name of 1 to 63 characters")
    user: Name = Field("appuser", description="a role name of 1 to 63 characters")
    # Any character: it goes to the driver as it is and never through a URL, so nothing has to be
    # percent-encoded and nothing can be encoded wrongly.
    password: SecretStr = Field(
        SecretStr("s3cr3t!"), validation_alias="DB_PASS", description="any text without NUL"
    )
    # A password that stays the same for ever because it is in a configuration.
    auth: Auth = Field("password", description="password (`DB_PASS`), secret or iam (RDS tokens)")
    secret_arn: str | None = Field(
        None,
        pattern=r"^arn:aws[\w-]*:secretsmanager:[\w-]+:\d{12}:secret:\S+$",
        description="the ARN of a Secrets Manager secret; needed by `DB_AUTH=secret`",
    )
    # A password sent to whoever answers. `verify-full` is the only word that stops it.
    sslmode: SslMode | None = Field(
        None, description="disable, allow, prefer, require, verify-ca or verify-full"
    )
    sslrootcert: FilePath | None = Field(None, description=CA_FILE)
    # More connections than a sandbox can use: it serves one event at a time, so one is enough.
    pool_size: int = Field(1, ge=1, le=1000, description="1 to 1000 connections kept open")
    max_overflow: int = Field(0, ge=0, le=1000, description="0 to 1000 connections above the pool")
    # A caller who waits for a connection longer than anybody waits for the caller.
    pool_timeout: Seconds = Field(3, description="seconds above 0")
    # Connections that pile up on an old PgBouncer behind a load balancer after a new one came.
    pool_recycle: int = Field(1800, ge=-1, description="seconds, or -1 for never")
    # A connection that PgBouncer (`client_idle_timeout`) or a load balancer closed while the
    # sandbox was frozen: past this age it is dropped instead of tried. Below both of theirs.
    max_idle: Seconds = Field(240, description="seconds above 0")
    # An address that swallows packets: without a bound the kernel tries for two minutes.
    connect_timeout: Seconds = Field(3, description="seconds above 0")
    # A server that never answers. Above PgBouncer's `query_wait_timeout` and the role's
    # `statement_timeout` together, so that their answer, which says why, comes first.
    command_timeout: Seconds = Field(9, description="seconds above 0")
    # A first caller who pays for the handshake. `required`: a start without a database, too.
    prewarm: Prewarm = Field("off", description="off, on (a failure is logged) or required")

    # A log that cannot tell what a request asked of the database, or tells it of all of them.
    sql_token: SecretStr | None = Field(None, min_length=16, description="16 characters or more")

    @field_validator("host", "name", "user", "password")
    @classmethod
    def _without_nul(cls, value: str | SecretStr) -> str | SecretStr:
        if "\0" in (value.get_secret_value() if isinstance(value, SecretStr) else value):
            raise ValueError("contains a NUL character, which Postgres' protocol cannot carry")
        return value

    @model_validator(mode="after")
    def _agreeing(self) -> "Settings":
        if self.auth == "secret" and self.secret_arn is None:
            allowed = Settings.model_fields["secret_arn"].description
            raise ValueError(f"DB_SECRET_ARN: unset, with DB_AUTH=secret. Allowed: {allowed}")
        if self.auth == "iam" and self.effective_sslmode in ("disable", "allow", "prefer"):
            fault = f"DB_SSLMODE is {self.effective_sslmode!r}: DB_AUTH=iam sends a token as it is."
            raise ValueError(f"{fault} Allowed: require, verify-ca or verify-full")
        return self

    @property
    def is_local(self) -> bool:
        """True where packets cannot leave this machine: a socket's folder or a loopback address."""
        with contextlib.suppress(ValueError):  # a name
            return ipaddress.ip_address(self.host).is_loopback
        return self.host.startswith("/") or self.host == "localhost"

    @property
    def effective_sslmode(self) -> SslMode:
        """`DB_SSLMODE`, or what an unset one means: no TLS on this machine, all of it elsewhere."""
        return self.sslmode or ("disable" if self.is_local else "verify-full")


def load(**overrides: Any) -> Settings:
    """Settings from the environment, `overrides` (by field name) before it.

    Raises SettingsError with one line that names each bad variable, never with a password.
    """
    try:
        return Settings(**overrides)
    except OSError as error:  # of looking at the one field that is a path
        raise SettingsError(f"DB_SSLROOTCERT: {error.strerror}. Allowed: {CA_FILE}") from None
    except ValidationError as error:
        # `from None`: pydantic's own message repeats the values, and so would a traceback.
        raise SettingsError("; ".join(_faults(error))) from None


def _faults(error: ValidationError) -> list[str]:
    faults = []
    for each in error.errors(include_url=False):
        fault = each["msg"].removeprefix("Value error, ")
        if each["loc"]:  # else it is of two variables together
            field = "password" if each["loc"][0] == "DB_PASS" else str(each["loc"][0])
            variable = "DB_PASS" if field == "password" else f"DB_{field.upper()}"
            value = "" if field in ("password", "sql_token") else f" is {each['input']!r}"
            allowed = Settings.model_fields[field].description
            fault = f"{variable}{value}: {fault}. Allowed: {allowed}"
        faults.append(fault)
    return faults

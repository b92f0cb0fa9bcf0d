"""The settings of the engine, read from environment variables.

They define each variable's default, allowed values and error. No error contains a password.
"""

import contextlib
import ipaddress
import os
import re
from typing import Annotated, Any, Literal

from pydantic import Field, FilePath, SecretStr, ValidationError, field_validator, model_validator
from pydantic_settings import BaseSettings, SettingsConfigDict

SslMode = Literal["disable", "allow", "prefer", "require", "verify-ca", "verify-full"]
Auth = Literal["password", "secret", "iam"]
Prewarm = Literal["off", "on", "required"]
Name = Annotated[str, Field(min_length=1, max_length=63)]
Seconds = Annotated[float, Field(gt=0, le=86_400)]
CA_FILE = "the path of a PEM file with the CA that issued the server's certificate"
UNSET = "unset, and on Lambda there is no default. Allowed:"


class SettingsError(Exception):
    """A bad value in the environment: one line that names the variable and what is allowed."""


class Settings(BaseSettings):
    """How to reach the database. `description` says what is allowed. The comment above a field
    describes the failure that the setting prevents. Times are in seconds."""

    # An empty variable counts as unset, as in libpq: Compose files pass empty variables on.
    model_config = SettingsConfigDict(
        env_prefix="DB_", env_ignore_empty=True, frozen=True, extra="ignore", populate_by_name=True
    )

    host: str = Field(
        "localhost", min_length=1, description="a host name, an address or a socket's directory"
    )
    port: int = Field(5432, ge=1, le=65535, description="1 to 65535")
    name: Name = Field("storefront", description="a database name of 1 to 63 characters")
    user: Name = Field("appuser", description="a role name of 1 to 63 characters")
    # A URL that a special character in the password breaks: no URL contains the password.
    password: SecretStr = Field(
        SecretStr("s3cr3t!"), validation_alias="DB_PASS", description="any text without NUL"
    )
    # A password that is never rotated, because it is part of the function's configuration.
    auth: Auth = Field("password", description="password (`DB_PASS`), secret or iam (RDS tokens)")
    secret_arn: str | None = Field(
        None,
        pattern=r"^arn:aws[\w-]*:secretsmanager:[\w-]+:\d{12}:secret:\S+$",
        description="the ARN of a Secrets Manager secret; needed by `DB_AUTH=secret`",
    )
    # A login to a server that impersonates the database. Only `verify-full` prevents it.
    sslmode: SslMode | None = Field(
        None, description="disable, allow, prefer, require, verify-ca or verify-full"
    )
    sslrootcert: FilePath | None = Field(None, description=CA_FILE)
    # Connections that are never used. An execution environment serves one event at a time.
    pool_size: int = Field(1, ge=1, le=1000, description="1 to 1000 connections that stay open")
    max_overflow: int = Field(0, ge=0, le=1000, description="0 to 1000 connections beyond the pool")
    # A wait for a free connection that is longer than the caller waits for the response.
    pool_timeout: Seconds = Field(3, description="seconds above 0, at most a day")
    # Connections that stay on the old PgBouncers behind a load balancer after new ones are added.
    pool_recycle: int = Field(1800, ge=-1, description="seconds, or -1 for never")
    # An error on a connection that PgBouncer (`client_idle_timeout`) or a load balancer closed
    # during a freeze. Keep the value below their timeouts.
    max_idle: Seconds = Field(240, description="seconds above 0, at most a day")
    # A wait of two minutes, the kernel's default, for an address that drops packets.
    connect_timeout: Seconds = Field(3, description="seconds above 0, at most a day")
    # An endless wait for a server. Keep the value above the sum of PgBouncer's `query_wait_timeout`
    # and the role's `statement_timeout`, so that their errors, which give the reason, come first.
    command_timeout: Seconds = Field(9, description="seconds above 0, at most a day")
    # A first request that waits for the handshake; `required` also prevents a start without it.
    prewarm: Prewarm = Field("off", description="off, on (a failure is logged) or required")
    # A 404 for every request, because each path starts with the base path of a custom domain.
    api_base_path: str = Field(
        "",
        validation_alias="API_BASE_PATH",
        pattern=r"^/?(?:(?:\.?[a-zA-Z0-9_~!$&'()*+,;=:@-])+\.?(?:/|$))*$",
        description="whole segments of a path, such as v1 or /shop/v2",
    )
    # Callers who share idempotency keys, because their tokens have the same subject or because an
    # authorizer names the caller in another field.
    api_caller_claim: str = Field(
        "",
        validation_alias="API_CALLER_CLAIM",
        pattern=r"^[A-Za-z0-9_:./-]*$",
        description="a claim of a JWT, or a field of an authorizer's context, such as client_id",
    )
    # A log that contains either no SQL or the SQL of all requests.
    sql_token: SecretStr | None = Field(None, min_length=16, description="16 characters or more")
    # Alarms that watch a different namespace than the one to which the function writes.
    metrics_namespace: str | None = Field(
        None,
        validation_alias="AWS_EMF_NAMESPACE",
        pattern=r"^[A-Za-z0-9._/#:-]{1,255}$",
        description="1 to 255 letters, digits and ._/#:-",
    )

    @field_validator("host", "name", "user", "password")
    @classmethod
    def _without_nul_or_url(cls, value: str | SecretStr) -> str | SecretStr:
        if "\0" in (value.get_secret_value() if isinstance(value, SecretStr) else value):
            raise ValueError("Postgres' protocol cannot transfer a NUL character")
        # A URL may contain a password, which the server's error would quote.
        if isinstance(value, str) and "://" in value:
            raise ValueError("a URL is not allowed")
        return value

    @field_validator("host")
    @classmethod
    def _one_host(cls, value: str) -> str:
        if value.startswith("/"):
            return value
        with contextlib.suppress(ValueError):
            return str(ipaddress.ip_address(value))
        if not re.fullmatch(r"\w[\w-]{0,62}(\.\w[\w-]{0,62})*\.?", value):
            raise ValueError("not a single host name (a port belongs in DB_PORT)")
        return value

    @model_validator(mode="after")
    def _require_host_and_login_on_lambda(self) -> "Settings":
        # The defaults are for a workstation: a function without these variables would connect to
        # its own sandbox or send the default password. The emulator of AWS counts as Lambda.
        given, missing = self.model_fields_set, []
        if "host" not in given:
            missing.append(f"DB_HOST: {UNSET} {Settings.model_fields['host'].description}")
        if self.auth == "password" and "password" not in given:
            missing.append(f"DB_PASS: {UNSET} any text without NUL, or DB_AUTH=secret or iam")
        if missing and "AWS_LAMBDA_FUNCTION_NAME" in os.environ:
            raise ValueError("; ".join(missing))
        return self

    @model_validator(mode="after")
    def _check_consistency(self) -> "Settings":
        if self.auth == "secret" and self.secret_arn is None:
            allowed = Settings.model_fields["secret_arn"].description
            raise ValueError(f"DB_SECRET_ARN: unset, with DB_AUTH=secret. Allowed: {allowed}")
        if self.auth == "iam" and self.effective_sslmode in ("disable", "allow", "prefer"):
            value = repr(self.sslmode) if self.sslmode else "unset"
            allowed = "require, verify-ca or verify-full"
            raise ValueError(f"DB_SSLMODE is {value}: DB_AUTH=iam needs TLS. Allowed: {allowed}")
        return self

    @property
    def is_local(self) -> bool:
        """True if no packet leaves this machine: a Unix socket or a loopback address."""
        with contextlib.suppress(ValueError):  # a name
            return ipaddress.ip_address(self.host).is_loopback
        return self.host.startswith("/") or self.host == "localhost"

    @property
    def effective_namespace(self) -> str | None:
        """`AWS_EMF_NAMESPACE`, or its default: WarmEngine on Lambda, else None (no metrics)."""
        on_lambda = "AWS_LAMBDA_FUNCTION_NAME" in os.environ
        return self.metrics_namespace or ("WarmEngine" if on_lambda else None)

    @property
    def effective_sslmode(self) -> SslMode:
        """`DB_SSLMODE`, or its default: no TLS on this machine, else `verify-full`."""
        return self.sslmode or ("disable" if self.is_local else "verify-full")


def load_settings(**overrides: Any) -> Settings:
    """Read the settings from the environment; `overrides` (by field name) take precedence.

    Raises SettingsError: one line that names every bad variable.
    """
    try:
        return Settings(**overrides)
    except OSError as error:  # from the one field that is a path
        raise SettingsError(f"DB_SSLROOTCERT: {error.strerror}. Allowed: {CA_FILE}") from None
    except ValidationError as error:
        # `from None`: pydantic's message, which a traceback would show, repeats the values.
        raise SettingsError("; ".join(_error_messages(error))) from None


def _redacted(value: object) -> str:
    """Return a short number, or a few dots and slashes, as they are, but only the length of any
    other text: it may be a secret that was set in the wrong variable."""
    text = str(value)
    if re.fullmatch(r"-?\d{1,5}(\.\d{1,4})?|inf|nan|[./]{1,9}", text):
        return repr(text)
    return f"a string of {len(text)} characters"


def _error_messages(error: ValidationError) -> list[str]:
    messages, fields = [], Settings.model_fields
    for item in error.errors(include_url=False):
        fault = item["msg"].removeprefix("Value error, ")
        if item["loc"]:  # else a model validator raised it, whose message names the variables
            name = str(item["loc"][0])
            field = next((k for k, v in fields.items() if v.validation_alias == name), name)
            variable = fields[field].validation_alias or f"DB_{field.upper()}"
            value = "" if field in ("password", "sql_token") else f" is {_redacted(item['input'])}"
            allowed = fields[field].description
            fault = f"{variable}{value}: {fault}. Allowed: {allowed}"
        messages.append(fault)
    return messages

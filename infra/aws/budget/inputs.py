"""The inputs of the connection budget, read from the templates and `pgbouncer/pgbouncer.ini`."""

from __future__ import annotations

import re
from dataclasses import dataclass, fields
from typing import Any

from infra.aws import template_file

#: Instance class → memory in GiB. https://aws.amazon.com/rds/instance-types/
MEMORY = {
    "db.t4g.micro": 1,
    "db.t4g.small": 2,
    "db.t4g.medium": 4,
    "db.t4g.large": 8,
    "db.m7g.large": 8,
    "db.m7g.xlarge": 16,
    "db.r7g.xlarge": 32,
    "db.r7g.2xlarge": 64,
}
#: `max_user_connections` of PgBouncer's lookup role, in each task's site.ini.
LOOKUP_CONNECTIONS = 2
#: During a deployment the old version's sandboxes exist alongside those of the new version.
FLEETS = 2
#: Inputs that may be zero. Others without a minimum in the template must be at least 1.
MAY_BE_ZERO = {"HumanConnections", "reserve_pool_size"}


def max_connections(gib: float) -> int:
    """Return a lower bound of RDS's `LEAST({DBInstanceClassMemory/9531392}, 5000)`.

    DBInstanceClassMemory is the class's memory less that of the operating system and RDS, which is
    not published. Subtracting 2.5 % and 300 MiB gives between 90 % and 100 % of the values of
    `max_connections` that are published for instances.
    """
    usable = gib * 2**30 * 39 / 40 - 300 * 2**20
    return min(int(usable / 9531392), 5000)


@dataclass(frozen=True)
class Budget:
    """The inputs; each field has the name of its setting."""

    # Parameters of template.yaml.
    Connection: str
    ReservedConcurrency: int
    PoolSize: int
    MaxOverflow: int
    PoolerTasks: int
    ProxyMaxConnectionsPercent: int
    InstanceClass: str
    # Metadata of template.yaml.
    ProcessesPerSandbox: int
    AccountConcurrency: int
    HumanConnections: int
    # pooler.yaml.
    MaximumPercent: int
    OpenFiles: int
    # pgbouncer.ini.
    default_pool_size: int
    reserve_pool_size: int
    max_client_conn: int

    @property
    def sandboxes(self) -> int:
        """The maximum number of sandboxes: the reservation or, without one, the quota."""
        return self.ReservedConcurrency or self.AccountConcurrency

    @property
    def clients(self) -> int:
        """The maximum number of client connections during a deployment."""
        per_sandbox = self.ProcessesPerSandbox * (self.PoolSize + self.MaxOverflow)
        return FLEETS * self.sandboxes * per_sandbox

    @property
    def server_connections_per_task(self) -> int:
        """The maximum number of connections of one PgBouncer to Postgres."""
        return self.default_pool_size + self.reserve_pool_size + LOOKUP_CONNECTIONS

    @property
    def max_connections(self) -> int:
        return max_connections(MEMORY[self.InstanceClass])


def from_templates(**overrides: Any) -> Budget:
    """Return the templates' values, with `overrides`. Raises ValueError for an invalid override."""
    root = template_file.read("template")
    pooler = template_file.read("pooler")["Resources"]
    ini = (template_file.FOLDER.parents[1] / "pgbouncer/pgbouncer.ini").read_text()
    container = pooler["Task"]["Properties"]["ContainerDefinitions"][0]
    values: dict[str, Any] = {
        **{name: parameter.get("Default") for name, parameter in root["Parameters"].items()},
        **root["Metadata"]["Budget"],
        **pooler["Service"]["Properties"]["DeploymentConfiguration"],
        "OpenFiles": container["Ulimits"][0]["SoftLimit"],
        **dict(re.findall(r"^(\w+) *= *(\d+)$", ini, re.M)),
    }
    types = {field.name: int if field.type == "int" else str for field in fields(Budget)}
    for name, value in overrides.items():
        if name not in types:
            raise ValueError(f"{name} is not an input of the budget. Inputs: {', '.join(types)}")
        values[name] = value
    try:
        inputs: dict[str, Any] = {name: convert(values[name]) for name, convert in types.items()}
    except ValueError as error:
        raise ValueError(f"not an integer: {error}") from None
    for name, value in inputs.items():
        _check(name, value, root["Parameters"].get(name, {}))
    if inputs["InstanceClass"] not in MEMORY:
        raise ValueError(f"InstanceClass must be one of {', '.join(MEMORY)}")
    return Budget(**inputs)


def _check(name: str, value: Any, parameter: dict[str, Any]) -> None:
    """Raise ValueError for a value that the template rejects or a number that is too small."""
    if isinstance(value, int):
        lowest = parameter.get("MinValue", 0 if name in MAY_BE_ZERO else 1)
        if not lowest <= value <= parameter.get("MaxValue", value):
            limit = f" to {parameter['MaxValue']}" if "MaxValue" in parameter else " or more"
            raise ValueError(f"{name}={value} is not allowed: it must be {lowest}{limit}")
    elif value not in parameter.get("AllowedValues", [value]):
        raise ValueError(f"{name} must be one of {', '.join(parameter['AllowedValues'])}")

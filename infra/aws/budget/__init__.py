"""The connection budget: whether the fleet can exhaust the database."""

from infra.aws.budget.inputs import (
    FLEETS,
    LOOKUP_CONNECTIONS,
    MEMORY,
    Budget,
    from_templates,
    max_connections,
)
from infra.aws.budget.limits import (
    MAINTENANCE_CONNECTIONS,
    RDS,
    SUPERUSERS,
    UNRESERVED,
    fits,
    limits,
)
from infra.aws.budget.suggestions import changed_values, grow_to_fit
from infra.aws.budget.table import if_pinned, table

__all__ = [
    "FLEETS",
    "LOOKUP_CONNECTIONS",
    "MAINTENANCE_CONNECTIONS",
    "MEMORY",
    "RDS",
    "SUPERUSERS",
    "UNRESERVED",
    "Budget",
    "changed_values",
    "fits",
    "from_templates",
    "grow_to_fit",
    "if_pinned",
    "limits",
    "max_connections",
    "table",
]

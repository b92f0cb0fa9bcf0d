"""`python -m handler 1`: print one order, read through the engine without Lambda or HTTP."""

import argparse
import asyncio
import logging
import sys

from handler import orders
from handler.warm import DatabaseError, SettingsError, dispose


def order_id(text: str) -> int:
    """Return an id from the command line. Raises ValueError if there can be no such order."""
    if not 1 <= int(text) <= orders.MAX_ID:
        raise ValueError
    return int(text)


order_id.__name__ = f"id (1 to {orders.MAX_ID})"  # argparse: "invalid id (1 to …) value: '0'"


async def show(number: int) -> str:
    """Return the order with that id as a line of text. Raises DatabaseError."""
    try:
        order = await orders.find(number)
    finally:
        await dispose()
    if order is None:
        return "Order not found."
    return f"Order {order.id}: {order.customer_name} — {order.status}"


def main() -> int:
    parser = argparse.ArgumentParser(prog="python -m handler", description="Print one order.")
    parser.epilog = "Environment: DB_HOST, DB_PORT, DB_NAME, DB_USER, DB_PASS, DB_SSLMODE, …"
    parser.add_argument("order_id", type=order_id, metavar="ID", help="the order's id")
    arguments = parser.parse_args()
    # Without log lines the error is printed once, at the end.
    logging.getLogger("handler").addHandler(logging.NullHandler())
    try:
        print(asyncio.run(show(arguments.order_id)))
    except (SettingsError, DatabaseError) as error:
        print(f"handler: {error}", file=sys.stderr)
        return 1
    except KeyboardInterrupt:
        return 130
    return 0


if __name__ == "__main__":
    sys.exit(main())

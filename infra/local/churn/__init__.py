"""`make churn`: provokes and measures connection exhaustion.

A fleet connects directly to Postgres and through PgBouncer, and its sandboxes end in every possible
way. `plan` has the size of a churn run, `run` runs one row of its table, `monitor` samples the
connections, `report` writes the results and finds broken promises, and `plot` draws the diagram.
"""

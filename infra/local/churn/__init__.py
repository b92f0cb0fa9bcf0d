"""`make churn`: provokes and measures connection exhaustion.

A fleet connects directly to Postgres and through PgBouncer, and its sandboxes end in every possible
way. `plan` has the size of the run, `run` one row, `monitor` the samples of connections, `report`
the results and broken promises, `plot` the diagram.
"""

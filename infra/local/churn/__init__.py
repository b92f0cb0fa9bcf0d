"""Connection exhaustion, provoked and measured: `make churn`.

A fleet of sandboxes straight to Postgres and through PgBouncer, whose sandboxes end in each of the
ways that one ends. `plan`: what is asked for, and whether this machine can; `run`: one path and one
ending; `watch`: what Postgres and PgBouncer hold meanwhile; `report`: what came of it, and which
promise it broke; `plot`: the picture of it.
"""

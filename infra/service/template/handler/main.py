"""The Lambda entry, `handler.main.handler`: connects the service to the engine."""

from handler.warm import LambdaHandler, cheap_imports

with cheap_imports():
    from handler.app import app

# `on_schedule=` is an async function that is called for the events of a schedule.
handler = LambdaHandler(app)

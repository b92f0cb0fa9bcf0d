"""The engine: SQLAlchemy on AWS Lambda. To upgrade a copy, replace this folder as a whole.

The names below are its public API. Everything else is internal and may change in any release.
"""

from handler.warm.cold_start import cheap_imports

with cheap_imports():
    from handler.warm.aws_lambda.adapter import LambdaHandler
    from handler.warm.aws_lambda.events import UnservedEventError
    from handler.warm.database.cancellation import seconds_left
    from handler.warm.database.engine import create_engine, dispose, get_engine, prewarm
    from handler.warm.database.run import ping, run, session
    from handler.warm.errors import ConstraintError, DatabaseError, Failure
    from handler.warm.http.caller import caller
    from handler.warm.http.documentation import add_documentation
    from handler.warm.http.install import install
    from handler.warm.http.problems import problem_responses
    from handler.warm.settings import Settings, SettingsError, load_settings

__all__ = [
    "ConstraintError",
    "DatabaseError",
    "Failure",
    "LambdaHandler",
    "Settings",
    "SettingsError",
    "UnservedEventError",
    "add_documentation",
    "caller",
    "cheap_imports",
    "create_engine",
    "dispose",
    "get_engine",
    "install",
    "load_settings",
    "ping",
    "prewarm",
    "problem_responses",
    "run",
    "seconds_left",
    "session",
]

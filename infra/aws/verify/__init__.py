"""`make verify`: checks on AWS what the documentation claims.

Each check tests one claim on a deployment and reports yes, no, or why it could not tell. It only
reads, unless CHANGES=1.
"""

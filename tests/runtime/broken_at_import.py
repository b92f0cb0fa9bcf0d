"""A function whose module does not import."""

raise RuntimeError("broken at import")

"""A function whose module fails to import."""

raise RuntimeError("broken at import")

"""The Lambda side: events, the event loop, SnapStart and shutdown."""

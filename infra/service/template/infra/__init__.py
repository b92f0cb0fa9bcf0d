"""The service's infrastructure: its database and AWS."""

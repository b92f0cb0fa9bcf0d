"""Where the service runs: its database, and AWS."""

"""Makes a service from this repository, and brings newer versions of it to that service."""

"""Creates a service from this repository, and updates it to newer versions of this repository."""

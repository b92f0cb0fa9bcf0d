"""Prepares the database: roles, schema and sample rows."""

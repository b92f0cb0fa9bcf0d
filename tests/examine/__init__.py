"""Tests of `infra.local.examine`, which examines any function."""

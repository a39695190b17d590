"""Fixtures of the tests of trust."""

"""Naive reference implementations of the networks, for timing and for agreement tests."""

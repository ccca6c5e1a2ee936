"""Placeholder until the system lands."""

"""Servers to compare with that run in this project's own environment."""

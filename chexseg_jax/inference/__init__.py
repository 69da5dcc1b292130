"""Jitted inference functions and exported networks."""

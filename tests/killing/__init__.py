"""Kills runs at random moments, goes on, and compares bit for bit: `python -m tests.killing`."""

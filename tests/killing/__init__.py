"""Kill runs at random moments, resume them, and compare bit for bit: `python -m tests.killing`."""

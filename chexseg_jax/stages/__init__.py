"""The verbs of the method; none knows another."""

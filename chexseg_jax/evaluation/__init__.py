"""Metrics, CheXlocalize's evaluation protocol and the human benchmark."""

"""Prediction on a folder of X-rays: inputs, progress, rendering, outputs."""

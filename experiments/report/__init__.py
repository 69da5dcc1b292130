"""The HTML report: tables, overlays, plots, model card."""

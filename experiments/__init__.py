"""What one runs; the only place that reads a command line."""

from experiments.pages import ask_for_large_pages

ask_for_large_pages()

"""What one runs; the only place that reads a command line."""

from chexseg_jax.runtime.terminal import prepare_terminal

prepare_terminal()

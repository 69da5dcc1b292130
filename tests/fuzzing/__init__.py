"""Damaged and hostile files for every reader, read in processes with limited time and memory."""

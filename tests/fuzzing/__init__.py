"""Damaged and hostile files by the thousand, through every reader, in processes with bounds."""

"""Blocked attempts: folded, told, summed up, and read back from the journal."""

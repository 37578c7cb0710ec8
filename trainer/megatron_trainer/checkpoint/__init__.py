"""Checkpoints: what one holds (contents), where they lie and which are complete (folder), writing, reading."""

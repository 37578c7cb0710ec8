"""Checkpoints: their contents (contents), their location and completeness (folder), saving and loading."""

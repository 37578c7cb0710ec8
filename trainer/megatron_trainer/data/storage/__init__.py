"""Encoded samples on disk: tokenized once by several workers, stored by content, read lazily."""

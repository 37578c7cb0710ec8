"""Encoded samples on disk: tokenized once by several workers, kept by content, read lazily."""

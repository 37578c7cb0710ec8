"""Losses as plain tensor functions: no collectives, no Megatron, testable by hand."""

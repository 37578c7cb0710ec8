"""The contract between operator and trainer: arguments, derived values, rules, progress record, exit codes.

Imports only the standard library and PyYAML, so that both halves, the CRD generator and the CLI can use it.
"""

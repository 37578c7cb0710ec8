"""The operator: a pure core (manifest and what is seen -> plan) and shells that apply plans."""

"""The operator: a pure core (manifest and observed state -> plan) and shells that apply plans."""

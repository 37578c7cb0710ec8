"""Applies plans: to a Kubernetes API server, or to processes of one machine."""

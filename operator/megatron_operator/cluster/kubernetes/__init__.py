"""Applies plans to a Kubernetes API server; observes it through informers and caches."""

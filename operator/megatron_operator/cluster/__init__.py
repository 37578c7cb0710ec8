"""Where plans become real: a Kubernetes API server, or the processes of one machine."""

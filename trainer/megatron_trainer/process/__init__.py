"""The processes of the trainer: the launcher of a pod, the rank it starts, and a run from arguments to exit code."""

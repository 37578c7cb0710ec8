"""The operator's process: kopf's handlers, the controller and its work queue, leases, servers, settings."""

"""Jobs in a Kueue queue: the Workload that requests quota, its state in Kueue, and what follows. Pure."""

"""Jobs in a Kueue queue: the Workload that asks for quota, what Kueue says of it, and what follows. Pure."""

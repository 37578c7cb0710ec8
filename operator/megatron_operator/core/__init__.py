"""The pure core: a job and its observed state -> a plan. No clock, no cluster, no environment."""

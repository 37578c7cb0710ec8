"""The pure core: a job and what is observed of it -> a plan. No clock, no cluster, no environment."""

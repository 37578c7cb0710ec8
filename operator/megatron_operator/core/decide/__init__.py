"""One policy a file: (job, seen, now) -> a decision, or None when the policy has nothing to say. All pure."""

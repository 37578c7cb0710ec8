"""One look at one job: manifest, what is seen and the time -> what to do. Pure; the order of policies is here."""

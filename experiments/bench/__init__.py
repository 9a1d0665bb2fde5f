"""The benchmark: the same federated work, done in several ways that a user could choose, and timed."""

"""The benchmark: the same federated work done in the ways that a user could choose, timed side by side."""

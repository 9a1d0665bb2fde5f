"""The simulation runtime on Ray: a Flower grid over actors of our own, and the cluster under it."""

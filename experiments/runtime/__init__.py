"""The simulation runtime on Ray: a Flower grid over this package's actors, and the cluster below it."""

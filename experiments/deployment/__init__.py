"""A real Flower deployment of the project: scripts that start one, and a fast executor for its clients."""

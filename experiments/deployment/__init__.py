"""A real Flower deployment of the project: scripts that start one, and what makes its rounds fast."""

"""The command line: runs and sweeps, their reports, the laboratory, reproductions, the benchmark and fault tests."""

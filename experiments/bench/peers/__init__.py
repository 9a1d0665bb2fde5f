"""Other frameworks in the contest: each in its own environment, each used as its own documents use it."""

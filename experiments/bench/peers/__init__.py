"""Other frameworks in the contest: each in an environment of its own, each used as its own documents use it."""

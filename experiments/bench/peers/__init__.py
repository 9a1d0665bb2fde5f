"""Other frameworks in the contest: each in its own environment, used as its own documentation describes."""

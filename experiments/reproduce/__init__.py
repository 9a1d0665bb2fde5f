"""``fedpfn reproduce``: the papers' tables and figures run again on one's own machine, and one page of what came."""

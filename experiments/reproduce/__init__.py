"""``fedpfn reproduce``: runs the papers' tables and figures on the user's machine, and writes one page of results."""

"""FedNova (Wang et al. 2020, arXiv 2007.07481), client's half: it reports how far its steps could have moved an entry.

Clients that take more steps than others pull the mean towards their own optimum. The server divides each update by the
client's normaliser a_i (``strategies.fed_nova``); a_i times the learning rate is how far the steps of each phase would
have moved an entry under a constant gradient, momentum included.
"""

from fedpfn.training import End, Finished, LocalAlgorithm, Start

REACH = "reach"


class FedNova(LocalAlgorithm):
    """FedNova on the client: it trains as in FedAvg and reports its reach in each phase."""

    needs_sgd = True

    def finish(self, start: Start, end: End) -> Finished:
        """Report the reach of each phase."""
        return Finished(metrics={REACH: [reach for _, reach in end.phases]})

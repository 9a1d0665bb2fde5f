"""The mathematics of federated neuron alignment: masks, freezing, training, barriers. Neither Flower nor Ray."""

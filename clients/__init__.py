"""What a client does with a message: the Flower ClientApp and the per-process cache behind it."""

"""Network: the one skeleton of supernet and sub-network, and its weights."""

"""Network: the skeleton that supernet and sub-networks share, its weights and modes."""

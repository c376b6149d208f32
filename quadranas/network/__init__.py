"""Network: the skeleton shared by supernets and sub-networks, its weights and modes."""

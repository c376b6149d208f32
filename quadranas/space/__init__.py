"""Networks and search spaces as plain data."""

"""Space: networks and search spaces as plain data."""

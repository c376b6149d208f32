"""Latency: budgets, devices, analytic device models, and the tables every prediction comes from."""

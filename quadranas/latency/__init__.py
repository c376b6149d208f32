"""Latency: budgets, devices, analytic models, and the tables every prediction comes from."""

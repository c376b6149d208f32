"""Latency: budgets, devices, conditions, analytic models and latency tables."""

"""Measurement: timing on a device, the entries of measured tables, verification of budgets."""

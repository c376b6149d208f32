"""Measurement: timing on a device, and the tables and checks made from it."""

"""Deployment: what an exported file is, how it is checked, and what lies beside it."""

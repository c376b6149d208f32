"""Runs: what lies on disk, and how it is continued."""

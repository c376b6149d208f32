"""Deployment: exported files, how they are checked, and the bundles that contain them."""

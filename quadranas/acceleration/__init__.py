"""The hardware that trains: accelerators, precisions, and several processes.

The *accelerator* trains; the *device* is where the network will run.
"""

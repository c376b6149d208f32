"""Commands: one module per command of the command line; each reads files and writes files."""

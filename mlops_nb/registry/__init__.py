"""Versions, aliases and the releases that serving reads."""

"""Checks whether a service can run on this machine."""

"""Reads Statsig's audit log, and finds the changes in it that no webhook brought."""

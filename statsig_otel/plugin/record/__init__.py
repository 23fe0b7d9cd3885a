"""Turns a config change into log records, mapping and services included. Pure functions, without I/O."""

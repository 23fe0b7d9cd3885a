"""Reads the records that are left in a damaged queue file."""

"""Carries over into a running queue what can still be read of database files that it set aside."""

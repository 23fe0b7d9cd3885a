"""The local demo: a day of sample changes, sent through a real collector."""

"""Serves HTTP/1.1 on sockets of its own: limits, TLS, draining."""

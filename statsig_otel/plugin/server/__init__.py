"""Serves HTTP/1.1 on its own sockets, with limits, TLS and draining."""

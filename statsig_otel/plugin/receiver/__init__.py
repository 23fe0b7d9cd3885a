"""Handles one request from its headers to its answer, for Falcon under ASGI and WSGI."""

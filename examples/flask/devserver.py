"""Starts the service in the process of the development server that serves."""

import atexit

from program import app, service


@app.before_request
def start() -> None:
    service.start()  # each time: after the first one it does nothing


atexit.register(service.shutdown)

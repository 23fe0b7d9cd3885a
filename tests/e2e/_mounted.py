"""A program that the service is mounted in: `python _mounted.py asgi|wsgi PORT CONFIG`. It says its URL."""

import os
import sys
import threading
import time
import urllib.error
import urllib.request

import uvicorn
import waitress  # type: ignore[import-untyped] # the package has no py.typed
from flask import Flask
from starlette.applications import Starlette
from starlette.routing import Mount
from werkzeug.middleware.dispatcher import DispatcherMiddleware

from statsig_otel import Service
from statsig_otel.plugin import DEFAULT_PATH


def say_once_it_listens(url: str) -> None:
    while True:
        try:
            urllib.request.urlopen(url)
        except urllib.error.HTTPError:  # the receiver's 405
            print(url, flush=True)
            return
        except OSError:
            time.sleep(0.01)


def main() -> None:
    interface, port, config = sys.argv[1], int(sys.argv[2]), sys.argv[3]
    service = Service.from_file(config, environ=os.environ, listen=False)
    url = f"http://127.0.0.1:{port}/statsig{DEFAULT_PATH}"
    threading.Thread(target=say_once_it_listens, args=(url,), daemon=True).start()
    if interface == "asgi":
        app = Starlette(routes=[Mount("/statsig", app=service.asgi_app())], lifespan=service.lifespan)
        uvicorn.run(app, port=port, log_level="error")
    else:
        with service:
            host = DispatcherMiddleware(Flask("host").wsgi_app, {"/statsig": service.wsgi_app()})
            waitress.serve(host, host="127.0.0.1", port=port, threads=8)


if __name__ == "__main__":
    main()

"""A Flask application that also takes Statsig's webhooks."""

import os

from flask import Flask, request
from werkzeug import Response

from statsig_otel import Service

service = Service(
    receivers={"statsig": {"path": "/statsig", "signing_secrets": [os.environ["STATSIG_SIGNING_SECRET"]]}},
    exporters={"otlp_grpc": {"endpoint": os.environ["OTEL_EXPORTER_OTLP_ENDPOINT"]}},
    directory="statsig-queue",
    listen=False,
    wait_for_directory=True,
)
webhooks = service.wsgi_app()

app = Flask(__name__)


@app.post("/statsig", strict_slashes=False)
def statsig() -> Response:
    return Response.from_app(webhooks, request.environ)


@app.get("/")
def page() -> str:
    return "This is your application."

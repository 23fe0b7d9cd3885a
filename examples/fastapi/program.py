"""A FastAPI application that also takes Statsig's webhooks."""

import os

from fastapi import FastAPI

from statsig_otel import Service

service = Service(
    receivers={"statsig": {"signing_secrets": [os.environ["STATSIG_SIGNING_SECRET"]]}},
    exporters={"otlp_grpc": {"endpoint": os.environ["OTEL_EXPORTER_OTLP_ENDPOINT"]}},
    directory="statsig-queue",
    listen=False,
    wait_for_directory=True,
)

app = FastAPI(lifespan=service.lifespan)
app.mount("/statsig", service.asgi_app())


@app.get("/")
def page() -> str:
    return "This is your application."

"""A Falcon application under ASGI, with the receiver as one of its resources."""

import os
from collections.abc import Mapping
from typing import Any

import falcon.asgi

from statsig_otel import Service

service = Service(
    receivers={"statsig": {"signing_secrets": [os.environ["STATSIG_SIGNING_SECRET"]]}},
    exporters={"otlp_grpc": {"endpoint": os.environ["OTEL_EXPORTER_OTLP_ENDPOINT"]}},
    directory="statsig-queue",
    listen=False,
    wait_for_directory=True,
)


class Lifespan:
    async def process_startup(self, scope: Mapping[str, Any], event: Mapping[str, Any]) -> None:
        await service.astart()

    async def process_shutdown(self, scope: Mapping[str, Any], event: Mapping[str, Any]) -> None:
        await service.ashutdown()


app = falcon.asgi.App(middleware=[Lifespan()])
app.req_options.strip_url_path_trailing_slash = True
app.add_route("/statsig", service.receiver())

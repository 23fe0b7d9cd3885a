"""The exporters over OTLP: gRPC, HTTP, and OTLP/JSON lines."""

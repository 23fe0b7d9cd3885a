"""Exporters that speak OTLP over gRPC and HTTP, and the OTLP/JSON encoding."""

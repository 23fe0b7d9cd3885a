"""Exporters that speak OTLP over gRPC and HTTP."""

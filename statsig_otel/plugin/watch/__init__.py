"""Shows the state of a running service: live page, recent events, health checks, metrics and spans."""

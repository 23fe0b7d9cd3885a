"""Reads Statsig's audit log, finds the changes in it that no webhook brought, and makes records of them."""

from typing import Final

URL: Final = "https://statsigapi.net/console/v1/audit_logs"
"""Where Statsig's audit log is."""

"""The attributes of a change's record, as a program without this project would make them: no field is checked."""

import json
from collections.abc import Mapping
from datetime import UTC, datetime
from hashlib import sha256
from typing import Any


def uid_of(change: Mapping[str, Any]) -> str:
    canonical = json.dumps(change, sort_keys=True, separators=(",", ":"))
    return sha256(b"statsig-otel/1\n" + canonical.encode()).hexdigest()[:32]


def title_of(change: Mapping[str, Any]) -> str:
    return f"{change['metadata']['name']} {change['metadata'].get('action', 'changed')}"


def attributes_of(change: Mapping[str, Any], uid: str) -> dict[str, Any]:
    """The attributes that have a value, in the order of the service's."""
    metadata, user = change["metadata"], change.get("user") or {}
    entity_type, name, action = metadata["type"], metadata["name"], metadata.get("action", "changed")
    environments = [environment for environment in (metadata.get("environments") or "").split(",") if environment]
    happened_at = datetime.fromtimestamp(change["timestamp"] / 1000, UTC)
    attributes = {
        "change_event.category": "feature_flags",
        "change_event.type": f"{entity_type}_{action}".lower().replace(" ", "_"),
        "change_event.source": "statsig",
        "change_event.happened_at": happened_at.isoformat(timespec="milliseconds").replace("+00:00", "Z"),
        "change_event.title": title_of(change),
        "change_event.label.type": entity_type,
        "change_event.label.name": name,
        "change_event.label.action": action,
        "change_event.label.description": metadata.get("description"),
        "feature_flag.key": name,
        "feature_flag.provider.name": "statsig",
        "feature_flag.set.id": metadata.get("projectID"),
        "deployment.environment.name": environments[0] if len(environments) == 1 else None,
        "user.name": user.get("name"),
        "user.email": user.get("email"),
        "user.id": user.get("userID"),
        "log.record.uid": uid,
        "statsig.environments": environments,
        "statsig.project.name": metadata.get("projectName"),
        "statsig.project.id": metadata.get("projectID"),
        "statsig.tags": metadata.get("tags"),
        "statsig.target_apps": metadata.get("targetApps"),
    }
    return {key: value for key, value in attributes.items() if value}

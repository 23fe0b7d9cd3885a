"""Items with all members and with few, and the change events that they become."""

import json
from typing import Any, Final

from statsig_otel.plugin.record.change_event import ChangeEvent

ABSENT: Final = object()


MINIMAL: Final[dict[str, Any]] = {
    "eventName": "statsig::config_change",
    "timestamp": 1709660061095,
    "metadata": {"type": "Gate", "name": "layout_v2"},
}


FULL: Final[dict[str, Any]] = {
    "eventName": "statsig::config_change",
    "timestamp": 1709660061095,
    "userID": "top_level_id",
    "user": {"name": "Test User", "email": "test.user@example.com", "userID": "user_id"},
    "metadata": {
        "type": "Gate",
        "name": "layout_v2",
        "action": "updated",
        "description": "- Updated rule\n    - 10 to 50",
        "environments": "production, staging",
        "environment": "older",
        "projectName": "Web",
        "projectID": "project_1",
        "tags": ["core"],
        "targetApps": ["app"],
    },
}


FULL_EVENT: Final = ChangeEvent(
    happened_at=1709660061095,
    entity_type="Gate",
    name="layout_v2",
    action="updated",
    description="- Updated rule\n    - 10 to 50",
    environments=("production", "staging"),
    project_id="project_1",
    project_name="Web",
    tags=("core",),
    target_apps=("app",),
    user_id="user_id",
    user_name="Test User",
    user_email="test.user@example.com",
)


def with_member(path: str, value: object, base: dict[str, Any] = FULL) -> dict[str, Any]:
    """A copy of an event in which one member, such as `metadata.name`, is another, or none."""
    item: dict[str, Any] = json.loads(json.dumps(base))
    *parents, name = path.split(".")
    holder = item
    for parent in parents:
        holder = holder[parent]
    if value is ABSENT:
        holder.pop(name, None)
    else:
        holder[name] = value
    return item


def mapped(path: str, value: object) -> ChangeEvent:
    return ChangeEvent.from_item(with_member(path, value))

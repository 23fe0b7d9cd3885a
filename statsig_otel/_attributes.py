"""The names of all attributes that a record can have. `UID` identifies a change behind every mapping."""

from typing import Final

CATEGORY: Final = "change_event.category"
TYPE: Final = "change_event.type"
SOURCE: Final = "change_event.source"
HAPPENED_AT: Final = "change_event.happened_at"
TITLE: Final = "change_event.title"
LABEL_TYPE: Final = "change_event.label.type"
LABEL_NAME: Final = "change_event.label.name"
LABEL_ACTION: Final = "change_event.label.action"
LABEL_DESCRIPTION: Final = "change_event.label.description"
FLAG_KEY: Final = "feature_flag.key"
FLAG_PROVIDER: Final = "feature_flag.provider.name"
FLAG_SET: Final = "feature_flag.set.id"
ENVIRONMENT: Final = "deployment.environment.name"
USER_NAME: Final = "user.name"
USER_EMAIL: Final = "user.email"
USER_ID: Final = "user.id"
UID: Final = "log.record.uid"
ENVIRONMENTS: Final = "statsig.environments"
PROJECT_NAME: Final = "statsig.project.name"
PROJECT_ID: Final = "statsig.project.id"
TAGS: Final = "statsig.tags"
TARGET_APPS: Final = "statsig.target_apps"
DETAIL_KIND: Final = "statsig.change.kind"
DETAIL_RULE: Final = "statsig.change.rule"
DETAIL_FROM: Final = "statsig.change.from"
DETAIL_TO: Final = "statsig.change.to"
DETAIL_KINDS: Final = "statsig.change.kinds"
DETAIL_RULES: Final = "statsig.change.rules"
DETAIL_GROUPS: Final = "statsig.change.groups"
DETAIL_PARAMETERS: Final = "statsig.change.parameters"
CHANGE_UID: Final = "statsig.config_change.uid"
IMPACTED_SERVICES: Final = "statsig.impacted_services"
ORIGINAL: Final = "log.record.original"
ORIGINAL_SIZE: Final = "statsig.original.size"
ORIGINAL_HASH: Final = "statsig.original.sha256"
ORIGIN: Final = "statsig.origin"
LOG_ID: Final = "statsig.audit_log.id"
LOG_ACTION_TYPE: Final = "statsig.audit_log.action_type"
LOG_OLD: Final = "statsig.audit_log.old"
LOG_NEW: Final = "statsig.audit_log.new"
LOG_SIZE: Final = "statsig.audit_log.size"

ALL: Final = (
    CATEGORY,
    TYPE,
    SOURCE,
    HAPPENED_AT,
    TITLE,
    LABEL_TYPE,
    LABEL_NAME,
    LABEL_ACTION,
    LABEL_DESCRIPTION,
    FLAG_KEY,
    FLAG_PROVIDER,
    FLAG_SET,
    ENVIRONMENT,
    USER_NAME,
    USER_EMAIL,
    USER_ID,
    UID,
    ENVIRONMENTS,
    PROJECT_NAME,
    PROJECT_ID,
    TAGS,
    TARGET_APPS,
    DETAIL_KIND,
    DETAIL_RULE,
    DETAIL_FROM,
    DETAIL_TO,
    DETAIL_KINDS,
    DETAIL_RULES,
    DETAIL_GROUPS,
    DETAIL_PARAMETERS,
    CHANGE_UID,
    IMPACTED_SERVICES,
    ORIGINAL,
    ORIGINAL_SIZE,
    ORIGINAL_HASH,
    ORIGIN,
    LOG_ID,
    LOG_ACTION_TYPE,
    LOG_OLD,
    LOG_NEW,
    LOG_SIZE,
)
"""In the order of docs/mapping.md."""

ARRAYS: Final = frozenset(
    {ENVIRONMENTS, TAGS, TARGET_APPS, IMPACTED_SERVICES, DETAIL_KINDS, DETAIL_RULES, DETAIL_GROUPS, DETAIL_PARAMETERS}
)
"""The attributes whose value is an array."""

FROM_LOG: Final = frozenset({ORIGIN, LOG_ID, LOG_ACTION_TYPE, LOG_OLD, LOG_NEW, LOG_SIZE})
"""The attributes that only records from Statsig's audit log have."""

DETAILS: Final = frozenset(
    {DETAIL_KIND, DETAIL_RULE, DETAIL_FROM, DETAIL_TO, DETAIL_KINDS, DETAIL_RULES, DETAIL_GROUPS, DETAIL_PARAMETERS}
)
"""The attributes from the details of a change, which Statsig only has in the description."""

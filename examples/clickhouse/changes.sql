-- The changes of a flag in the last day, each once, however often it was delivered.
SELECT Timestamp, Body, ServiceName, LogAttributes['user.name'] AS who, LogAttributes['statsig.environments'] AS environments
FROM otel_logs
WHERE EventName = 'statsig.config_change'
  AND LogAttributes['feature_flag.key'] = 'sample_gate'
  AND Timestamp >= now() - INTERVAL 1 DAY
ORDER BY Timestamp
LIMIT 1 BY LogAttributes['log.record.uid'];

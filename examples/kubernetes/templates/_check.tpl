{{- /* What a schema can't say, or not in a sentence that helps. */}}
{{- define "statsig-otel.check" }}
{{- range tuple "collector" "extensions" "mode" "networkPolicy" "podAnnotations" "podLabels" "restartOnChange" "server" "service" "serviceMonitor" "telemetry" "terminationGracePeriodSeconds" "volume" }}
{{- if kindIs "invalid" (index $.Values .) }}
{{- fail (printf "%s: is null, which removes what the chart has there. Leave it out, or give it a value" .) }}
{{- end }}
{{- end }}
{{- $disk := eq .Values.mode "disk" }}
{{- $name := include "statsig-otel.name" . }}
{{- if not (regexMatch "^[a-z]([a-z0-9-]*[a-z0-9])?$" $name) }}
{{- fail (printf "the release's name %s can't be the name of a Service, which begins with a letter and has only lower case letters, digits and hyphens" .Release.Name) }}
{{- end }}
{{- if regexMatch "[:@][^/]*$" .Values.image.repository }}
{{- fail (printf "image.repository: %s has a tag or a digest, which belongs in image.tag or image.digest" .Values.image.repository) }}
{{- end }}
{{- if and .Values.image.tag .Values.image.digest }}
{{- fail "image.tag and image.digest: both are set. The digest alone would count: remove one of them" }}
{{- end }}
{{- if hasKey .Values.podAnnotations "checksum/config" }}
{{- fail "podAnnotations.checksum/config: the chart sets it. restartOnChange says whether a change starts new pods" }}
{{- end }}
{{- range .Values.extraVolumes }}
{{- if or (has .name (list "config" "queue")) (hasPrefix "secrets-" .name) }}
{{- fail (printf "extraVolumes: the chart has a volume with the name %s" .name) }}
{{- end }}
{{- end }}
{{- $paths := dict }}
{{- range $id, $settings := .Values.receivers }}
{{- if not (regexMatch "^statsig(/[a-z0-9]([a-z0-9-]{0,38}[a-z0-9])?)?$" $id) }}
{{- fail (printf "receivers.%s: the name has to be statsig, or statsig/ and at most 40 lower case letters, digits and hyphens, such as statsig/mobile" $id) }}
{{- end }}
{{- range tuple "endpoint" "signing_secrets" "tls" }}
{{- if hasKey $settings . }}
{{- fail (printf "receivers.%s.%s: the chart sets it. signingSecret names the Secret, service.port the port, and your ingress has TLS" $id .) }}
{{- end }}
{{- end }}
{{- range tuple "read_header_timeout" "health_path" "max_connections" "max_in_flight_bytes" }}
{{- if hasKey $settings . }}
{{- fail (printf "receivers.%s.%s: it is the same for all receivers, which share a port: set server.%s" $id . .) }}
{{- end }}
{{- end }}
{{- $path := $settings.path | default "/api/v1/data/events/receiver/statsig" | trimSuffix "/" }}
{{- with get $paths $path }}
{{- fail (printf "receivers.%s and receivers.%s: both have the path %s. Give each its own" . $id $path) }}
{{- end }}
{{- $_ := set $paths $path $id }}
{{- end }}
{{- if hasKey (.Values.extensions.health_check | default dict) "endpoint" }}
{{- fail "extensions.health_check.endpoint: the chart sets it, since the probes ask there" }}
{{- end }}
{{- if hasKey (.Values.extensions.file_storage | default dict) "directory" }}
{{- fail "extensions.file_storage.directory: the chart sets it, to where the volume is" }}
{{- end }}
{{- if eq (dig "metrics" "level" "" .Values.telemetry | toString | lower) "none" }}
{{- fail "telemetry.metrics.level: with none, nothing answers on port 8888, where the chart has the metrics. Leave it out" }}
{{- end }}
{{- if and .Values.collector.config (not .Values.collector.image) }}
{{- fail "collector.config: without collector.image there is no Collector, and nobody listens where the exporters send. Set it, or leave both out" }}
{{- end }}
{{- if $disk }}
{{- if gt (.Values.replicas | default 1 | int) 1 }}
{{- fail "replicas: only for mode kafka, since a second pod would have a queue of its own" }}
{{- end }}
{{- $size := toString .Values.volume.size }}
{{- if or (not (regexMatch "^[0-9]+([.][0-9]+)?[MGTP]i?$" $size)) (not (regexMatch "[1-9]" $size)) }}
{{- fail (printf "volume.size: %v is not a size. Sizes are written as 10Gi, 1.5Gi or 500M" .Values.volume.size) }}
{{- end }}
{{- else }}
{{- if .Values.collector.image }}
{{- fail "collector: only for mode disk, since a Collector as a sidecar keeps nothing" }}
{{- end }}
{{- if hasKey .Values.extensions "file_storage" }}
{{- fail "extensions.file_storage: mode kafka has no volume for it" }}
{{- end }}
{{- range $id, $settings := .Values.exporters }}
{{- if or (gt (len $.Values.exporters) 1) (ne (splitList "/" $id | first) "kafka") }}
{{- fail (printf "exporters: mode kafka takes one exporter of the type kafka, and here are %s" (keys $.Values.exporters | sortAlpha | join ", ")) }}
{{- end }}
{{- if hasKey ($settings | default dict) "sending_queue" }}
{{- fail (printf "exporters.%s.sending_queue: mode kafka has no volume for a queue" $id) }}
{{- end }}
{{- if not (get ($settings | default dict) "brokers") }}
{{- fail (printf "exporters.%s.brokers: is empty. List the brokers of your Kafka, such as [kafka-1.kafka:9092]" $id) }}
{{- end }}
{{- end }}
{{- end }}
{{- end }}

{{- define "statsig-otel.name" -}}
{{ .Release.Name | trunc 50 | trimSuffix "-" }}
{{- end }}

{{- define "statsig-otel.selector" -}}
app.kubernetes.io/name: statsig-otel
app.kubernetes.io/instance: {{ .Release.Name }}
{{- end }}

{{- define "statsig-otel.labels" -}}
{{ include "statsig-otel.selector" . }}
app.kubernetes.io/version: {{ .Chart.AppVersion | quote }}
app.kubernetes.io/managed-by: {{ .Release.Service }}
helm.sh/chart: {{ .Chart.Name }}-{{ .Chart.Version }}
{{- end }}

{{/* The file for `statsig-otel run`. */}}
{{- define "statsig-otel.config" -}}
{{- $disk := eq .Values.mode "disk" }}
{{- $receivers := dict }}
{{- range $id, $settings := .Values.receivers }}
{{- $folder := printf "/etc/statsig-otel/secrets/%s" (replace "/" "-" $id) }}
{{- $given := dict
  "endpoint" "0.0.0.0:8080"
  "signing_secrets" (list (printf "${file:%s/signing-secret}" $folder) (printf "${file:%s/next-signing-secret}" $folder)) }}
{{- $_ := set $receivers $id (merge $given (omit $settings "signingSecret") ($.Values.server | default dict)) }}
{{- end }}
{{- $exporters := dict }}
{{- range $id, $settings := .Values.exporters }}
{{- $_ := set $exporters $id (ternary $settings (merge (dict "sending_queue" (dict "enabled" false)) ($settings | default dict)) $disk) }}
{{- end }}
{{- $extensions := dict "health_check" (dict "endpoint" "0.0.0.0:13133") }}
{{- if $disk }}
{{- $_ := set $extensions "file_storage" (dict "directory" "/var/lib/statsig-otel") }}
{{- end }}
{{- $extensions = merge $extensions .Values.extensions }}
{{- $reader := dict "pull" (dict "exporter" (dict "prometheus" (dict "host" "0.0.0.0" "port" 8888))) }}
{{- $readers := prepend (dig "metrics" "readers" list .Values.telemetry) $reader }}
{{- $service := dict
  "extensions" (keys $extensions | sortAlpha)
  "telemetry" (merge (dict "metrics" (dict "readers" $readers)) .Values.telemetry)
  "pipelines" (dict "logs" (dict "receivers" (keys $receivers | sortAlpha) "exporters" (keys $exporters | sortAlpha))) }}
{{- dict "receivers" $receivers "exporters" $exporters "extensions" $extensions "service" $service | toYaml }}
{{- end }}

{{/* What a pod is, with a volume or without. */}}
{{- define "statsig-otel.pod" -}}
metadata:
  labels: {{ merge (include "statsig-otel.labels" . | fromYaml) .Values.podLabels | toYaml | nindent 4 }}
  annotations:
    # A changed configuration starts new pods. A changed secret does not need that. A Collector can't reload its own.
    checksum/config: {{ print (.Values.restartOnChange | ternary (include "statsig-otel.config" .) "") (toYaml .Values.collector) | sha256sum }}
    {{- with .Values.podAnnotations }}
    {{- toYaml . | nindent 4 }}
    {{- end }}
spec:
  automountServiceAccountToken: false
  serviceAccountName: {{ include "statsig-otel.name" . }}
  terminationGracePeriodSeconds: {{ .Values.terminationGracePeriodSeconds }}
  {{- with .Values.priorityClassName }}
  priorityClassName: {{ . | quote }}
  {{- end }}
  securityContext:
    runAsNonRoot: true
    {{- with .Values.runAsUser }}
    runAsUser: {{ . }}
    runAsGroup: {{ . }}
    fsGroup: {{ . }}
    {{- end }}
    fsGroupChangePolicy: OnRootMismatch
    seccompProfile: {type: RuntimeDefault}
  {{- with .Values.imagePullSecrets }}
  imagePullSecrets: {{ toYaml . | nindent 4 }}
  {{- end }}
  containers:
    - name: statsig-otel
      {{- with .Values.image }}
      image: {{ print .repository (.digest | empty | ternary (print ":" (.tag | default $.Chart.AppVersion)) (print "@" .digest)) | quote }}
      {{- end }}
      imagePullPolicy: {{ .Values.image.pullPolicy }}
      args: [run, --config, /etc/statsig-otel/config/statsig-otel.yaml]
      {{- with .Values.envFrom }}
      envFrom: {{ toYaml . | nindent 8 }}
      {{- end }}
      ports:
        - {name: webhook, containerPort: 8080}
        - {name: health, containerPort: 13133}
        - {name: metrics, containerPort: 8888}
      startupProbe:
        httpGet: {path: /livez, port: health}
        periodSeconds: 2
        failureThreshold: 150 # the queue of a crashed node may have to be looked through first
      livenessProbe:
        httpGet: {path: /livez, port: health}
        timeoutSeconds: 6
      readinessProbe:
        httpGet: {path: /readyz, port: health}
        periodSeconds: 5
        timeoutSeconds: 3
      {{- if eq .Values.mode "kafka" }}
      lifecycle:
        # Kubernetes tells others that this pod goes at the same moment as the pod. Webhooks still come until they know.
        preStop:
          exec: {command: [python3, -c, import time; time.sleep(10)]}
      {{- end }}
      resources: {{ toYaml .Values.resources | nindent 8 }}
      securityContext:
        allowPrivilegeEscalation: false
        readOnlyRootFilesystem: true
        capabilities: {drop: [ALL]}
      volumeMounts:
        - {name: config, mountPath: /etc/statsig-otel/config, readOnly: true}
        {{- range $id, $_ := .Values.receivers }}
        {{- $name := replace "/" "-" $id }}
        - {name: secrets-{{ $name }}, mountPath: /etc/statsig-otel/secrets/{{ $name }}, readOnly: true}
        {{- end }}
        {{- if eq .Values.mode "disk" }}
        - {name: queue, mountPath: /var/lib/statsig-otel}
        {{- end }}
        {{- with .Values.extraVolumeMounts }}
        {{- toYaml . | nindent 8 }}
        {{- end }}
    {{- if .Values.collector.image }}
    # It may end before the service: what the service can't deliver then is in its queue.
    - name: collector
      image: {{ .Values.collector.image | quote }}
      imagePullPolicy: {{ .Values.image.pullPolicy }}
      args: [--config, /etc/collector/collector.yaml]
      {{- with .Values.collector.envFrom }}
      envFrom: {{ toYaml . | nindent 8 }}
      {{- end }}
      resources: {{ toYaml .Values.collector.resources | nindent 8 }}
      securityContext:
        allowPrivilegeEscalation: false
        readOnlyRootFilesystem: true
        capabilities: {drop: [ALL]}
      volumeMounts:
        - {name: config, mountPath: /etc/collector, readOnly: true}
    {{- end }}
  volumes:
    - name: config
      configMap: {name: {{ include "statsig-otel.name" . }}}
    {{- range $id, $settings := .Values.receivers }}
    - name: secrets-{{ replace "/" "-" $id }}
      secret: {secretName: {{ $settings.signingSecret }}, defaultMode: 0440}
    {{- end }}
    {{- with .Values.extraVolumes }}
    {{- toYaml . | nindent 4 }}
    {{- end }}
  {{- with .Values.nodeSelector }}
  nodeSelector: {{ toYaml . | nindent 4 }}
  {{- end }}
  {{- with .Values.tolerations }}
  tolerations: {{ toYaml . | nindent 4 }}
  {{- end }}
  {{- with .Values.affinity }}
  affinity: {{ toYaml . | nindent 4 }}
  {{- end }}
  {{- if eq .Values.mode "kafka" }}
  topologySpreadConstraints:
    - maxSkew: 1
      topologyKey: kubernetes.io/hostname
      whenUnsatisfiable: ScheduleAnyway
      labelSelector:
        matchLabels: {{ include "statsig-otel.selector" . | nindent 10 }}
  {{- end }}
{{- end }}

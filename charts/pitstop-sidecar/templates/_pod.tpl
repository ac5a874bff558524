{{/*
Each template takes a dict:

  sidecar   this chart as the calling chart sees it: .Subcharts.ALIAS
  name      the name of the Deployment, StatefulSet or DaemonSet
  selector  the labels that select its pods, as a dict
  labels    labels for the objects, as a dict; if left out, the selector
  claim     a PersistentVolumeClaim for the switch, where the values name none; may be left out
  ports     the application's ports, by name or number, which a NetworkPolicy goes on to admit, unless there is a gate
            before them; may be left out
  upstream  where the application listens, such as http://127.0.0.1:8080, for a gate whose values do not say; may be left
            out
*/}}

{{/* Not empty if the sidecar is a native one. */}}
{{- define "pitstop-sidecar.native" -}}
{{- $native := .sidecar.Values.native -}}
{{- $version := .sidecar.Capabilities.KubeVersion.Version -}}
{{- if and (eq $native "always") (semverCompare "<1.28-0" $version) -}}
{{- /* It would be an init container that never ends. */ -}}
{{- fail (printf "native: always takes Kubernetes 1.28 or newer, this is %s" $version) -}}
{{- else if or (eq $native "always") (and (eq $native "auto") (semverCompare ">=1.29-0" $version)) -}}
true
{{- end -}}
{{- end -}}

{{/* Not empty if it is a gate, in front of the application. */}}
{{- define "pitstop-sidecar.gate" -}}
{{- if eq .sidecar.Values.mode "gate" -}}
true
{{- else if .sidecar.Values.gate.upstream -}}
{{- fail (printf "gate.upstream: %s has no meaning unless mode is gate" .sidecar.Values.gate.upstream) -}}
{{- end -}}
{{- end -}}

{{/* The port that the application's Service targets: the gate's, else the first of the application's. */}}
{{- define "pitstop-sidecar.targetPort" -}}
{{- if include "pitstop-sidecar.gate" . -}}
pitstop
{{- else -}}
{{ first .ports }}
{{- end -}}
{{- end -}}

{{/* The image, with its tag or digest. */}}
{{- define "pitstop-sidecar.image" -}}
{{- $image := .sidecar.Values.image -}}
{{- if $image.digest -}}
{{ $image.repository }}@{{ $image.digest }}
{{- else -}}
{{ $image.repository }}:{{ $image.tag | default .sidecar.Chart.AppVersion }}
{{- end -}}
{{- end -}}

{{/* The name of the maintenance Service, and of the fleet's ConfigMap unless the values name another. */}}
{{- define "pitstop-sidecar.maintenance" -}}
{{ .name | trunc 51 | trimSuffix "-" }}-maintenance
{{- end -}}

{{/* The name of the fleet's ConfigMap. */}}
{{- define "pitstop-sidecar.configMap" -}}
{{ .sidecar.Values.fleet.configMap | default (include "pitstop-sidecar.maintenance" .) }}
{{- end -}}

{{/* Not empty if the page has files of its own. */}}
{{- define "pitstop-sidecar.pageFiles" -}}
{{- $page := .sidecar.Values.page -}}
{{- if and (or $page.logo $page.template) (not $page.configMap) -}}
{{- fail "page.configMap is not set: page.logo and page.template are keys of it" -}}
{{- else if and $page.configMap (not (or $page.logo $page.template)) -}}
{{- fail (printf "page.configMap: of %s, page.logo or page.template names a key" $page.configMap) -}}
{{- else if $page.configMap -}}
true
{{- end -}}
{{- end -}}

{{/* The container, without what makes it a native sidecar. */}}
{{- define "pitstop-sidecar.container" -}}
{{- $values := .sidecar.Values -}}
{{- $gate := include "pitstop-sidecar.gate" . -}}
name: pitstop
image: {{ include "pitstop-sidecar.image" . | quote }}
imagePullPolicy: {{ $values.image.pullPolicy }}
env:
  {{- if $values.fleet.enabled }}
  - name: PITSTOP_FILE
    value: /maintenance/MAINTENANCE:/maintenance-fleet/MAINTENANCE
  {{- end }}
  {{- if $gate }}
  - name: PITSTOP_UPSTREAM
    value: {{ quote (required "gate.upstream is not set: mode is gate, so it has to say where your application listens, such as http://127.0.0.1:8080" ($values.gate.upstream | default .upstream)) }}
  {{- with $values.gate.upstreamTimeout }}
  - name: PITSTOP_UPSTREAM_TIMEOUT
    value: {{ quote . }}
  {{- end }}
  {{- end }}
  - name: PITSTOP_SHUTDOWN_DELAY
    value: {{ printf "%ds" (int $values.shutdownDelaySeconds) }}
  - name: PITSTOP_DRAIN_TIMEOUT
    value: {{ printf "%ds" (int $values.drainTimeoutSeconds) }}
  {{- with $values.retryAfter }}
  - name: PITSTOP_RETRY_AFTER
    value: {{ quote . }}
  {{- end }}
  {{- with $values.page.title }}
  - name: PITSTOP_TITLE
    value: {{ quote . }}
  {{- end }}
  {{- with $values.page.accent }}
  - name: PITSTOP_ACCENT
    value: {{ quote . }}
  {{- end }}
  {{- with $values.page.logo }}
  - name: PITSTOP_LOGO
    value: /maintenance-page/{{ . }}
  {{- end }}
  {{- with $values.page.template }}
  - name: PITSTOP_PAGE
    value: /maintenance-page/{{ . }}
  {{- end }}
  {{- with $values.poll }}
  - name: PITSTOP_POLL
    value: {{ quote . }}
  {{- end }}
  {{- with $values.log }}
  - name: PITSTOP_LOG
    value: {{ quote . }}
  {{- end }}
  {{- with $values.logFormat }}
  - name: PITSTOP_LOG_FORMAT
    value: {{ quote . }}
  {{- end }}
  {{- with $values.env }}
  {{- toYaml . | nindent 2 }}
  {{- end }}
{{- /* Where the protocol is left out, some servers refuse a server-side apply, which Helm 4 does. */}}
ports:
  - name: pitstop
    containerPort: 8503
    protocol: TCP
  - name: pitstop-admin
    containerPort: 9503
    protocol: TCP
startupProbe:
  httpGet:
    path: /livez
    port: pitstop-admin
  {{- toYaml $values.probes.startup | nindent 2 }}
livenessProbe:
  httpGet:
    path: /livez
    port: pitstop-admin
  {{- toYaml $values.probes.liveness | nindent 2 }}
readinessProbe:
  httpGet:
    {{- /* With a gate the pod stays ready in maintenance, so that users reach the page, and rollouts go on. */}}
    path: {{ ternary "/readyz?exclude=maintenance" "/readyz" (not (empty $gate)) }}
    port: pitstop-admin
  {{- toYaml $values.probes.readiness | nindent 2 }}
resources:
  {{- toYaml (ternary $values.gate.resources $values.resources (not (empty $gate))) | nindent 2 }}
securityContext:
  {{- toYaml $values.securityContext | nindent 2 }}
volumeMounts:
  - name: maintenance
    mountPath: /maintenance
  {{- if $values.fleet.enabled }}
  - name: maintenance-fleet
    mountPath: /maintenance-fleet
    readOnly: true
  {{- end }}
  {{- if include "pitstop-sidecar.pageFiles" . }}
  - name: maintenance-page
    mountPath: /maintenance-page
    readOnly: true
  {{- end }}
{{- end -}}

{{/* A list for `initContainers`, before all others: the sidecar if it is a native one, else nothing. */}}
{{- define "pitstop-sidecar.initContainers" -}}
{{- if include "pitstop-sidecar.native" . -}}
- {{ include "pitstop-sidecar.container" . | nindent 2 | trim }}
  restartPolicy: Always
{{- end -}}
{{- end -}}

{{/* A list for `containers`, after all others: the sidecar if it is an ordinary container, else nothing. */}}
{{- define "pitstop-sidecar.containers" -}}
{{- if not (include "pitstop-sidecar.native" .) -}}
- {{ include "pitstop-sidecar.container" . | nindent 2 | trim }}
{{- end -}}
{{- end -}}

{{/* A list for the `volumeMounts` of the application's container. */}}
{{- define "pitstop-sidecar.volumeMounts" -}}
- name: maintenance
  mountPath: {{ .sidecar.Values.switch.mountPath }}
{{- if and .sidecar.Values.fleet.enabled .sidecar.Values.fleet.mountInApplication }}
- name: maintenance-fleet
  mountPath: /maintenance-fleet
  readOnly: true
{{- end }}
{{- end -}}

{{/* A list for the pod's `volumes`. */}}
{{- define "pitstop-sidecar.volumes" -}}
- name: maintenance
  {{- with .sidecar.Values.switch.claim | default .claim }}
  persistentVolumeClaim:
    claimName: {{ . }}
  {{- else }}
  emptyDir: {}
  {{- end }}
{{- if .sidecar.Values.fleet.enabled }}
- name: maintenance-fleet
  configMap:
    name: {{ include "pitstop-sidecar.configMap" . }}
    optional: true
{{- end }}
{{- if include "pitstop-sidecar.pageFiles" . }}
- name: maintenance-page
  configMap:
    name: {{ .sidecar.Values.page.configMap }}
    optional: true
{{- end }}
{{- end -}}

{{/* The name of all objects. Short enough for what follows it, such as -maintenance. */}}
{{- define "pitstop.name" -}}
{{- $name := .Values.nameOverride | default .Chart.Name -}}
{{- if .Values.fullnameOverride -}}
{{- $name = .Values.fullnameOverride -}}
{{- else if contains $name .Release.Name -}}
{{- $name = .Release.Name -}}
{{- else -}}
{{- $name = printf "%s-%s" .Release.Name $name -}}
{{- end -}}
{{ $name | replace "." "-" | trunc 51 | trimSuffix "-" }}
{{- end -}}

{{/* The labels that select the pods. */}}
{{- define "pitstop.selector" -}}
app.kubernetes.io/name: {{ .Values.nameOverride | default .Chart.Name | trunc 63 | trimSuffix "-" }}
app.kubernetes.io/instance: {{ .Release.Name }}
{{- end -}}

{{/* The labels of all objects. */}}
{{- define "pitstop.labels" -}}
{{ include "pitstop.selector" . }}
app.kubernetes.io/managed-by: {{ .Release.Service }}
helm.sh/chart: {{ printf "%s-%s" .Chart.Name .Chart.Version | replace "+" "_" }}
{{- end -}}

{{/* The application's image. */}}
{{- define "pitstop.image" -}}
{{- $image := .Values.app.image -}}
{{- $repository := required "app.image.repository is not set: it is the image of your web application" $image.repository -}}
{{- if $image.digest -}}
{{ $repository }}@{{ $image.digest }}
{{- else -}}
{{ $repository }}:{{ $image.tag | default "latest" }}
{{- end -}}
{{- end -}}

{{/* How the application waits before it stops: sleep, exec or none. */}}
{{- define "pitstop.preStop" -}}
{{- $type := .Values.app.preStop.type -}}
{{- if ne $type "auto" -}}
{{ $type }}
{{- else if semverCompare ">=1.30-0" .Capabilities.KubeVersion.Version -}}
sleep
{{- else -}}
exec
{{- end -}}
{{- end -}}

{{/* What no schema can say: values that contradict each other. */}}
{{- define "pitstop.check" -}}
{{- $delay := int .Values.sidecar.shutdownDelaySeconds -}}
{{- $drain := int .Values.sidecar.drainTimeoutSeconds -}}
{{- $grace := int .Values.terminationGracePeriodSeconds -}}
{{- $sleep := int .Values.app.preStop.seconds -}}
{{- if has (int .Values.app.port) (list 8503 9503) -}}
{{- fail (printf "app.port: %d is the sidecar's" (int .Values.app.port)) -}}
{{- end -}}
{{- if le $grace (add $delay $drain) -}}
{{- fail (printf "terminationGracePeriodSeconds: %d has to be more than sidecar.shutdownDelaySeconds and sidecar.drainTimeoutSeconds, %d + %d" $grace $delay $drain) -}}
{{- end -}}
{{- if ne .Values.app.preStop.type "none" -}}
{{- if le $sleep $delay -}}
{{- fail (printf "app.preStop.seconds: %d has to be more than sidecar.shutdownDelaySeconds, %d" $sleep $delay) -}}
{{- end -}}
{{- if ge $sleep $grace -}}
{{- fail (printf "app.preStop.seconds: %d has to be less than terminationGracePeriodSeconds, %d" $sleep $grace) -}}
{{- end -}}
{{- /* It stops when the application has. */ -}}
{{- if and (include "pitstop-sidecar.native" (dict "sidecar" .Subcharts.sidecar)) (le $grace (add $sleep $delay)) -}}
{{- fail (printf "terminationGracePeriodSeconds: %d has to be more than app.preStop.seconds and a native sidecar's shutdownDelaySeconds after it, %d + %d" $grace $sleep $delay) -}}
{{- end -}}
{{- end -}}
{{- if and (eq .Values.app.preStop.type "sleep") (semverCompare "<1.29-0" .Capabilities.KubeVersion.Version) -}}
{{- fail (printf "app.preStop.type: sleep takes Kubernetes 1.29 or newer, this is %s" .Capabilities.KubeVersion.Version) -}}
{{- end -}}
{{- if and .Values.sharedSwitch.create .Values.sidecar.switch.claim -}}
{{- fail "sharedSwitch.create and sidecar.switch.claim: either create a claim or name one" -}}
{{- end -}}
{{- end -}}

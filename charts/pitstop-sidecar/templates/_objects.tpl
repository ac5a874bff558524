{{/* All objects beside the workload: the maintenance Service, unless there is a gate, and what the values enable. */}}
{{- define "pitstop-sidecar.objects" -}}
{{- $objects := list -}}
{{- if not (include "pitstop-sidecar.gate" .) -}}
{{- $objects = append $objects (include "pitstop-sidecar.service" .) -}}
{{- end -}}
{{- range $name := list "podMonitor" "prometheusRule" "networkPolicy" -}}
{{- if (index $.sidecar.Values $name).enabled -}}
{{- $objects = append $objects (include (printf "pitstop-sidecar.%s" $name) $) -}}
{{- end -}}
{{- end -}}
{{ join "\n---\n" $objects }}
{{- end -}}

{{/* The labels of an object, and further ones of its own. */}}
{{- define "pitstop-sidecar.labels" -}}
{{- toYaml (merge (dict) (.further | default dict) (.object.labels | default .object.selector)) -}}
{{- end -}}

{{/* The maintenance Service: reaches the sidecar's refusals when the application's own Service has dropped the pod. */}}
{{- define "pitstop-sidecar.service" -}}
apiVersion: v1
kind: Service
metadata:
  name: {{ include "pitstop-sidecar.maintenance" . }}
  labels:
    {{- include "pitstop-sidecar.labels" (dict "object" .) | nindent 4 }}
  {{- with .sidecar.Values.service.annotations }}
  annotations:
    {{- toYaml . | nindent 4 }}
  {{- end }}
spec:
  publishNotReadyAddresses: true
  selector:
    {{- toYaml .selector | nindent 4 }}
  ports:
    - name: http
      port: {{ .sidecar.Values.service.port }}
      targetPort: pitstop
      protocol: TCP
{{- end -}}

{{/* The PodMonitor: it finds a native sidecar too, and names the workload that a pod belongs to. */}}
{{- define "pitstop-sidecar.podMonitor" -}}
apiVersion: monitoring.coreos.com/v1
kind: PodMonitor
metadata:
  name: {{ .name }}
  labels:
    {{- include "pitstop-sidecar.labels" (dict "object" . "further" .sidecar.Values.podMonitor.labels) | nindent 4 }}
spec:
  selector:
    matchLabels:
      {{- toYaml .selector | nindent 6 }}
  podMetricsEndpoints:
    - port: pitstop-admin
      {{- with .sidecar.Values.podMonitor.interval }}
      interval: {{ . }}
      {{- end }}
      relabelings:
        - sourceLabels: [__meta_kubernetes_pod_phase]
          regex: Succeeded|Failed
          action: drop
        # A pod without a controller is a workload of its own.
        - sourceLabels: [__meta_kubernetes_pod_name]
          targetLabel: workload
        # StatefulSet, DaemonSet, Job, or a ReplicaSet by itself.
        - sourceLabels: [__meta_kubernetes_pod_controller_name]
          regex: (.+)
          targetLabel: workload
        # A Deployment's name is its ReplicaSet's without the hash, which the pod then bears as a label, too.
        - sourceLabels:
            - __meta_kubernetes_pod_controller_kind
            - __meta_kubernetes_pod_labelpresent_pod_template_hash
            - __meta_kubernetes_pod_controller_name
          regex: ReplicaSet;true;(.+)-[^-]+
          targetLabel: workload
{{- end -}}

{{/* The alerts, from rules.yaml. As the rules are a file and not a template, nothing in them is escaped. */}}
{{- define "pitstop-sidecar.prometheusRule" -}}
{{- $rules := .sidecar.Files.Get "rules.yaml" -}}
{{- $hours := int .sidecar.Values.prometheusRule.longAfterHours -}}
{{- if ne $hours 2 -}}
{{- $rules = $rules | replace "> 2 * 60 * 60" (printf "> %d * 60 * 60" $hours) -}}
{{- $rules = regexReplaceAll "more than two\\s+hours" $rules (printf "more than %d hours" $hours) -}}
{{- end -}}
apiVersion: monitoring.coreos.com/v1
kind: PrometheusRule
metadata:
  name: {{ include "pitstop-sidecar.maintenance" . }}
  labels:
    {{- include "pitstop-sidecar.labels" (dict "object" . "further" .sidecar.Values.prometheusRule.labels) | nindent 4 }}
spec:
  {{- toYaml (fromYaml $rules) | nindent 2 }}
{{- end -}}

{{/* The NetworkPolicy. It isolates the pods, so it has to admit the application's clients as well, unless they come by the
gate: then nobody gets past it. */}}
{{- define "pitstop-sidecar.networkPolicy" -}}
apiVersion: networking.k8s.io/v1
kind: NetworkPolicy
metadata:
  name: {{ .name }}
  labels:
    {{- include "pitstop-sidecar.labels" (dict "object" .) | nindent 4 }}
spec:
  podSelector:
    matchLabels:
      {{- toYaml .selector | nindent 6 }}
  policyTypes: [Ingress]
  ingress:
    - ports:
        {{- if not (include "pitstop-sidecar.gate" .) }}
        {{- range .ports }}
        - port: {{ . }}
        {{- end }}
        {{- end }}
        - port: pitstop
      {{- with .sidecar.Values.networkPolicy.from }}
      from:
        {{- toYaml . | nindent 8 }}
      {{- end }}
    {{- with .sidecar.Values.networkPolicy.adminFrom }}
    - ports:
        - port: pitstop-admin
      from:
        {{- toYaml . | nindent 8 }}
    {{- end }}
{{- end -}}

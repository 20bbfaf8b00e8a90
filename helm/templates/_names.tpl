{{/* Names and labels. Selectors never change between releases: Kubernetes does not allow it. */}}
{{- define "producer.name" -}}
{{- default .Chart.Name .Values.nameOverride | trunc 40 | trimSuffix "-" -}}
{{- end -}}

{{- define "producer.fullname" -}}
{{- $name := include "producer.name" . -}}
{{- $whole := ternary .Release.Name (printf "%s-%s" .Release.Name $name) (contains $name .Release.Name) -}}
{{- default $whole .Values.fullnameOverride | replace "." "-" | trunc 50 | trimAll "-" -}}
{{- end -}}

{{- define "producer.selector" -}}
app.kubernetes.io/name: {{ include "producer.name" . }}
app.kubernetes.io/instance: {{ .Release.Name }}
{{- end -}}

{{- define "producer.labels" -}}
{{ include "producer.selector" . }}
app.kubernetes.io/version: {{ .Chart.AppVersion | quote }}
app.kubernetes.io/managed-by: {{ .Release.Service }}
helm.sh/chart: {{ printf "%s-%s" .Chart.Name .Chart.Version | replace "+" "_" }}
{{- end -}}

{{- define "producer.serviceAccount" -}}
{{- if .Values.serviceAccount.create -}}
{{- default (include "producer.fullname" .) .Values.serviceAccount.name -}}
{{- else -}}
{{- default "default" .Values.serviceAccount.name -}}
{{- end -}}
{{- end -}}

{{/* The namespace that is let in to scrape; empty where none is. */}}
{{- define "producer.prometheusNamespace" -}}
{{- if and .Values.serviceMonitor.enabled .Values.networkPolicy.enabled -}}
{{- .Values.networkPolicy.prometheusNamespace | default "" -}}
{{- end -}}
{{- end -}}

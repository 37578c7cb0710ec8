{{- define "mtj.fullname" -}}
{{- if contains .Chart.Name .Release.Name -}}{{ .Release.Name | trunc 50 | trimSuffix "-" }}{{- else -}}{{ printf "%s-%s" .Release.Name .Chart.Name | trunc 50 | trimSuffix "-" }}{{- end -}}
{{- end -}}

{{- define "mtj.selectorLabels" -}}
app.kubernetes.io/name: {{ .Chart.Name }}
app.kubernetes.io/instance: {{ .Release.Name }}
{{- end -}}

{{- define "mtj.labels" -}}
{{ include "mtj.selectorLabels" . }}
app.kubernetes.io/component: operator
app.kubernetes.io/part-of: {{ .Chart.Name }}
app.kubernetes.io/version: {{ .Chart.AppVersion | quote }}
app.kubernetes.io/managed-by: {{ .Release.Service }}
helm.sh/chart: {{ .Chart.Name }}-{{ .Chart.Version }}
{{- end -}}

{{- define "mtj.serviceAccount" -}}
{{- .Values.serviceAccount.name | default (include "mtj.fullname" .) -}}
{{- end -}}

{{- define "mtj.image" -}}
{{- $tag := .Values.image.tag | default .Chart.AppVersion -}}
{{- with .Values.image.registry }}{{ . }}/{{ end -}}{{ .Values.image.repository }}:{{ $tag }}
{{- end -}}

{{- define "mtj.isNamespaced" -}}
{{- if eq .Values.rbac.scope "namespace" }}true{{ end -}}
{{- end -}}

{{- /* The namespaces to watch, separated by commas; "" is all of them. */ -}}
{{- define "mtj.watchNamespaces" -}}
{{- if and (include "mtj.isNamespaced" .) (not .Values.watchNamespaces) }}{{ .Release.Namespace }}{{ else }}{{ join "," .Values.watchNamespaces }}{{ end -}}
{{- end -}}

{{- define "mtj.detectsNodeLoss" -}}
{{- if and .Values.nodeLossDetection (not (include "mtj.isNamespaced" .)) }}true{{ end -}}
{{- end -}}

{{- define "mtj.gangSchedulers" -}}
{{- $names := list -}}
{{- if .Values.gang.volcano }}{{ $names = append $names "Volcano" }}{{ end -}}
{{- if .Values.gang.coscheduling }}{{ $names = append $names "Coscheduling" }}{{ end -}}
{{- if .Values.gang.native }}{{ $names = append $names "Native" }}{{ end -}}
{{- join "," $names -}}
{{- end -}}

{{- define "mtj.webhookSecret" -}}
{{- .Values.webhook.existingSecret | default (printf "%s-webhook" (include "mtj.fullname" .)) -}}
{{- end -}}

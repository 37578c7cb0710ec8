{{- define "mtj.name" -}}
{{- .Values.nameOverride | default .Chart.Name | trunc 50 | trimSuffix "-" -}}
{{- end -}}

{{- define "mtj.fullname" -}}
{{- $name := include "mtj.name" . -}}
{{- $full := ternary .Release.Name (printf "%s-%s" .Release.Name $name) (contains $name .Release.Name) -}}
{{- .Values.fullnameOverride | default $full | trunc 50 | trimSuffix "-" -}}
{{- end -}}

{{- define "mtj.selectorLabels" -}}
app.kubernetes.io/name: {{ include "mtj.name" . }}
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
{{- include "mtj.registry" . }}{{ .Values.image.repository }}:{{ $tag }}
{{- end -}}

{{- define "mtj.trainerImage" -}}
{{- .Values.trainerImage | default (printf "%smegatron-trainer:%s" (include "mtj.registry" .) .Chart.AppVersion) -}}
{{- end -}}

{{- define "mtj.registry" -}}
{{- with .Values.image.registry }}{{ . | trimSuffix "/" }}/{{ end -}}
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

{{- /* Whether the next rendering has the same certificate: a renderer without access to the cluster finds no Service. */ -}}
{{- define "mtj.keepsCertificate" -}}
{{- if or .Values.webhook.certManager.enabled .Values.webhook.existingSecret }}true
{{- else if lookup "v1" "Service" "default" "kubernetes" }}true
{{- end -}}
{{- end -}}

{{- define "mtj.pushesProgress" -}}
{{- $asked := .Values.progressPush.enabled | toString -}}
{{- if eq $asked "true" }}true
{{- else if and (eq $asked "auto") (not (include "mtj.isNamespaced" .)) (include "mtj.keepsCertificate" .) }}true
{{- end -}}
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

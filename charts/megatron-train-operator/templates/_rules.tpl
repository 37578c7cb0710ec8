{{- /* What the operator may do to jobs and their children: each verb is used, none is to spare (tests/cluster). */ -}}
{{- define "mtj.rules" -}}
- apiGroups: [megatrontrain.dev]
  resources: [megatrontrainjobs]
  verbs: [list, watch, delete]        # delete: runPolicy.ttlPolicy DeleteJob
- apiGroups: [megatrontrain.dev]
  resources: [megatrontrainjobs/status]
  verbs: [patch]
- apiGroups: [megatrontrain.dev]
  resources: [megatrontrainjobs/finalizers]
  verbs: [update]                     # to set blockOwnerDeletion where the cluster enforces this permission
- apiGroups: [""]
  resources: [pods, services, configmaps]
  verbs: [create, get, list, watch, patch, delete]  # patch: labels that somebody took off, the service's attempt
- apiGroups: [""]
  resources: [persistentvolumeclaims]
  verbs: [create, get]                # get: whether one that is there already goes with a deleted job
- apiGroups: [""]
  resources: [events]
  verbs: [create, patch, list]        # list: why a pod does not start is in its events alone
{{- if eq .Values.kueue.mode "External" }}
- apiGroups: [kueue.x-k8s.io]
  resources: [workloads]
  verbs: [create, get, list, watch, delete]
- apiGroups: [kueue.x-k8s.io]
  resources: [workloads/status]
  verbs: [patch]
{{- end }}
{{- if .Values.gang.volcano }}
- apiGroups: [scheduling.volcano.sh]
  resources: [podgroups]
  verbs: [create, get, list, watch, delete]
{{- end }}
{{- if .Values.gang.coscheduling }}
- apiGroups: [scheduling.x-k8s.io]
  resources: [podgroups]
  verbs: [create, get, list, watch, delete]
{{- end }}
{{- if .Values.gang.native }}
- apiGroups: [scheduling.k8s.io]
  resources: [podgroups]
  verbs: [create, get, list, watch, delete]
{{- end }}
{{- end -}}

{{/* The release's name is the name of everything; a longer one would not fit into labels. */}}
{{- define "weir.name" -}}
{{- .Release.Name | trunc 53 | trimSuffix "-" -}}
{{- end -}}

{{- define "weir.selector" -}}
app.kubernetes.io/name: weir
app.kubernetes.io/instance: {{ .Release.Name }}
{{- end -}}

{{- define "weir.labels" -}}
{{ include "weir.selector" . }}
app.kubernetes.io/version: {{ .Chart.AppVersion | quote }}
{{- end -}}

{{- define "weir.image" -}}
{{- with .Values.image -}}
{{- if .digest -}}
{{ .repository }}@{{ .digest }}
{{- else -}}
{{ .repository }}:{{ .tag | default $.Chart.AppVersion }}
{{- end -}}
{{- end -}}
{{- end -}}

{{/* What every container has: the image, its rights, its files. */}}
{{- define "weir.container" -}}
image: {{ include "weir.image" . }}
imagePullPolicy: {{ .Values.image.pullPolicy }}
resources:
  {{- toYaml .Values.resources | nindent 2 }}
securityContext:
  # Root, because /proc of other users' processes, bpffs and the state are root's; but with
  # five rights of the forty or so that root has.
  runAsUser: 0
  runAsGroup: 0
  privileged: false
  allowPrivilegeEscalation: false
  readOnlyRootFilesystem: true
  capabilities:
    drop: [ALL]
    add:
      # Loads programs and makes maps.
      - BPF
      # Attaches programs to interfaces, and listens for interfaces.
      - NET_ADMIN
      # The verifier accepts pointer arithmetic that it refuses the unprivileged.
      - PERFMON
      # Enters network namespaces (setns), and looks at programs of others.
      - SYS_ADMIN
      # Finds the network namespace of processes that are another user's.
      - SYS_PTRACE
  seccompProfile:
    # Allows bpf(2) and setns(2) to those who have the capabilities above.
    type: RuntimeDefault
  appArmorProfile:
    # The runtimes' default profiles forbid writing below /sys/fs, the pins included, and
    # looking at processes of other containers.
    type: Unconfined
  {{- with .Values.seLinuxOptions }}
  seLinuxOptions:
    {{- toYaml . | nindent 4 }}
  {{- end }}
volumeMounts:
  - name: node-file
    mountPath: /etc/weir
    readOnly: true
  {{- if .Values.rls.enabled }}
  - name: quotas
    mountPath: /etc/weir-quotas
    readOnly: true
  {{- end }}
  {{- if and .Values.rls.enabled .Values.rls.storeSecret }}
  - name: store
    mountPath: /etc/weir-store
    readOnly: true
  {{- end }}
  {{- if and .Values.rls.enabled .Values.rls.xdsSecret }}
  - name: xds
    mountPath: /etc/weir-xds
    readOnly: true
  {{- end }}
  - name: bpf
    mountPath: /sys/fs/bpf
  - name: cgroup
    mountPath: /sys/fs/cgroup
    readOnly: true
  - name: state
    mountPath: /run/weir
  - name: probe
    mountPath: /run/weir-pod
{{- end -}}

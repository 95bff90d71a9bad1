#!/bin/sh
# Keeps the agent running where there is no systemd (containers, Termux): starts it again when it ends, waiting 1 s at first
# and up to 60 s, and survives the end of the ssh session that started it.
# usage: launcher.sh start | stop | status | run
set -u
prefix='@PREFIX@' config='@CONFIG@' state='@STATE@' service_user='@USER@'
pid_file=$state/launcher.pid
log=$state/agent.log

# A number may have been given to another process since: the command line tells.
pid() {
  found=$(cat "$pid_file" 2>/dev/null) || return 1
  tr '\0' ' ' <"/proc/$found/cmdline" 2>/dev/null | grep -q "launcher.sh run" && echo "$found"
}

run() {
  echo $$ >"$pid_file"
  wait_s=1 child=
  trap '[ -n "$child" ] && kill "$child" 2>/dev/null; wait "$child" 2>/dev/null; rm -f "$pid_file"; exit 0' TERM INT
  trap '' HUP
  set -a; . "$config/agent.env"; set +a
  # A phone's processor sleeps when its screen does, unless a wake lock is held: Termux's own program, which a proot sees by its path.
  for lock in termux-wake-lock /data/data/com.termux/files/usr/bin/termux-wake-lock; do
    if command -v "$lock" >/dev/null 2>&1; then "$lock" >>"$log" 2>&1 & break; fi
  done
  while :; do
    if [ -f "$config/enrol.env" ]; then set -a; . "$config/enrol.env"; set +a; else unset MOEFLEET_ENROL_TOKEN; fi
    # Looked at when the agent is started: beyond 8 MiB a new log is begun, and this one is kept beside it.
    if [ "$(wc -c <"$log" 2>/dev/null || echo 0)" -gt 8388608 ]; then mv "$log" "$log.1"; fi
    began=$(date +%s)
    "$prefix/current/bin/moefleet-agent" run >>"$log" 2>&1 &
    child=$!
    wait "$child"; code=$?
    child=
    if [ $(($(date +%s) - began)) -ge 60 ]; then wait_s=1; fi
    printf '{"level":40,"name":"launcher","msg":"the agent ended with code %s; it is started again in %s s"}\n' "$code" "$wait_s" >>"$log"
    sleep "$wait_s" & child=$!; wait "$child"; child=
    wait_s=$((wait_s * 2)); [ "$wait_s" -le 60 ] || wait_s=60
  done
}

start() {
  if pid >/dev/null; then return 0; fi
  as=
  if [ "$(id -u)" = 0 ] && [ "$service_user" != root ]; then
    if command -v setpriv >/dev/null 2>&1; then as="setpriv --reuid=$service_user --regid=$(id -g "$service_user") --clear-groups"; else as=su; fi
  fi
  away=; command -v setsid >/dev/null 2>&1 && away=setsid
  cd "$state" || exit 1
  if [ "$as" = su ]; then $away nohup su -s /bin/sh "$service_user" -c "exec sh '$prefix/launcher.sh' run" </dev/null >/dev/null 2>&1 &
  else $away nohup $as sh "$prefix/launcher.sh" run </dev/null >/dev/null 2>&1 &
  fi
  tries=0
  until pid >/dev/null; do
    tries=$((tries + 1)); [ "$tries" -le 50 ] || { echo "launcher: it did not start; see $log" >&2; exit 1; }
    sleep 0.1 2>/dev/null || sleep 1
  done
}

stop() {
  found=$(pid) || return 0
  kill "$found" 2>/dev/null
  tries=0
  while [ -d "/proc/$found" ]; do
    tries=$((tries + 1)); [ "$tries" -le 200 ] || { kill -9 "$found" 2>/dev/null; break; }
    sleep 0.1 2>/dev/null || sleep 1
  done
  rm -f "$pid_file"
}

case "${1:-}" in
  run) run ;;
  start) start ;;
  stop) stop ;;
  status) found=$(pid) && echo "running as process $found" || { echo "not running"; exit 1; } ;;
  *) echo "usage: launcher.sh start | stop | status" >&2; exit 2 ;;
esac

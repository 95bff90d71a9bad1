# One step of a deployment on the device. POSIX sh, sent over standard input. Each step is whole or leaves what was there.
# usage: sh -s -- STEP PREFIX CONFIG STATE USER [more, by step]; $content is set before
set -eu
# The service's user reads what root puts there, also where root's own files are nobody else's.
umask 022
step=$1 prefix=$2 config=$3 state=$4 service_user=$5
shift 5
fail() { printf 'moefleet: %s\n' "$1" >&2; exit 1; }
# In the system's scope files belong to the service's user, in a user's own scope to that user as they are.
give() { if [ "$(id -u)" = 0 ]; then chown -R "$service_user" "$@"; fi; }
# openssl uses the processor's own instructions for it, which sha256sum does not everywhere: a fifth of the time.
digest() { { openssl dgst -sha256 -r "$1" 2>/dev/null || sha256sum "$1"; } | cut -d' ' -f1; }
# Refuses what did not arrive as it was sent.
whole() { [ "$(digest "$1")" = "$2" ] || { rm -f "$1"; fail "$1 arrived damaged: its SHA-256 is another"; }; }

case $step in
  user)
    if ! id "$service_user" >/dev/null 2>&1; then
      mkdir -p "$prefix"
      if command -v useradd >/dev/null 2>&1; then useradd --system --user-group --no-create-home --home-dir "$state" --shell /usr/sbin/nologin "$service_user"
      elif command -v adduser >/dev/null 2>&1; then adduser -S -D -H -h "$state" -s /sbin/nologin "$service_user"
      else fail "neither useradd nor adduser is there"
      fi
      # `undeploy` removes only a user that was made here.
      printf '%s\n' "$service_user" >"$prefix/created-user"
    fi ;;

  # FILE: bytes and SHA-256 of what has arrived of it so far
  part)
    mkdir -p "$(dirname "$1")"
    if [ -s "$1" ]; then printf '%s %s\n' "$(wc -c <"$1" | tr -d ' ')" "$(digest "$1")"; else echo '0 -'; fi ;;

  # ARCHIVE FORMAT SHA256-OF-THE-BUNDLE SHA256
  bundle)
    whole "$1" "$4"
    release=$prefix/releases/$(printf %.12s "$3")
    rm -rf "$release.new"; mkdir -p "$release.new"
    case $2 in
      zst) zstd -dcq "$1" | tar -xf - -C "$release.new" ;;
      gz) gzip -dc "$1" | tar -xf - -C "$release.new" ;;
      tar) tar -xf "$1" -C "$release.new" ;;
    esac || { rm -rf "$release.new"; fail "the bundle cannot be unpacked; is the disk of $prefix full?"; }
    inside=$release.new
    if [ ! -e "$inside/bin/moefleet-agent" ]; then inside=$(dirname "$(dirname "$(ls -d "$inside"/*/bin/moefleet-agent 2>/dev/null || echo "$inside/none/none")")"); fi
    [ -x "$inside/bin/moefleet-agent" ] || { rm -rf "$release.new"; fail "the bundle holds no bin/moefleet-agent"; }
    "$inside/bin/node" --version >/dev/null || { rm -rf "$release.new"; fail "the bundle does not run on this device"; }
    printf '%s\n' "$3" >"$inside/.bundle-sha256"
    if [ "$(id -u)" = 0 ]; then chown -R 0:0 "$inside"; chmod -R go+rX,go-w "$inside"; fi
    sync -f "$inside" 2>/dev/null || sync
    rm -rf "$release"; mv "$inside" "$release"; rm -rf "$release.new"
    # The one before stays, to go back to; older ones go.
    before=$(readlink "$prefix/current" 2>/dev/null || true)
    ln -sfn "$release" "$prefix/current.new" && mv -Tf "$prefix/current.new" "$prefix/current" 2>/dev/null || { rm -f "$prefix/current"; mv "$prefix/current.new" "$prefix/current"; }
    for old in "$prefix"/releases/*; do case $old in "$release"|"$before") ;; *) rm -rf "$old" ;; esac; done
    rm -rf "$prefix/incoming" ;;

  # PART NAME SHA256
  model)
    whole "$1" "$3"
    mv -f "$1" "$state/models/$2"
    chmod 0644 "$state/models/$2"
    printf '%s\n%s-%s\n' "$3" "$(ls -ln "$state/models/$2" | awk '{print $5}')" "$(date -r "$state/models/$2" +%s 2>/dev/null || true)" >"$state/models/$2.sha256"
    give "$state/models"
    sync -f "$state/models" 2>/dev/null || sync ;;

  # $content: a line per file, with MODE, OWNER (root, or service for the service's user), path and content in base64
  files)
    printf '%s\n' "$content" | while read -r mode owner path data; do
      path=$(printf '%s' "$path" | base64 -d)
      mkdir -p "$(dirname "$path")"
      (umask 077; printf '%s' "$data" | base64 -d >"$path.new")
      chmod "$mode" "$path.new"
      if [ "$(id -u)" = 0 ] && [ "$owner" = service ]; then chown "$service_user" "$path.new"; fi
      mv -f "$path.new" "$path"
    done ;;

  # systemd | launcher: makes the service known, and runs what is installed now
  start)
    mkdir -p "$state/models"
    chmod 0750 "$state"
    give "$state"
    if [ "$1" = systemd ]; then
      systemctl daemon-reload
      systemctl enable --quiet moefleet-agent.service
      systemctl restart moefleet-agent.service
    else
      "$prefix/launcher.sh" stop
      "$prefix/launcher.sh" start
    fi ;;

  # systemd | launcher, LINES: the last that the agent has said
  log)
    if [ "$1" = systemd ]; then journalctl -u moefleet-agent.service -n "$2" -o cat --no-pager 2>/dev/null
    else tail -n "$2" "$state/agent.log" 2>/dev/null
    fi || true ;;

  # FILE
  forget) rm -f "$1" ;;

  # Everything that a deployment has made, also one that ended half-way.
  remove)
    found=no
    if [ -d /run/systemd/system ] && [ "$(id -u)" = 0 ] && [ -e /etc/systemd/system/moefleet-agent.service ]; then
      found=yes
      systemctl disable --quiet --now moefleet-agent.service || true
      rm -f /etc/systemd/system/moefleet-agent.service
      systemctl daemon-reload
      systemctl reset-failed moefleet-agent.service 2>/dev/null || true
    fi
    if [ -x "$prefix/launcher.sh" ]; then "$prefix/launcher.sh" stop; fi
    made=$(cat "$prefix/created-user" 2>/dev/null || true)
    for folder in "$prefix" "$config" "$state"; do
      if [ -e "$folder" ]; then found=yes; rm -rf "$folder"; fi
    done
    if [ -n "$made" ] && id "$made" >/dev/null 2>&1; then
      if command -v userdel >/dev/null 2>&1; then userdel "$made" 2>/dev/null || fail "the user $made cannot be removed; what it still runs: ps -u $made"
      else deluser "$made"
      fi
    fi
    printf 'found=%s\n' "$found" ;;

  *) fail "no such step: $step" ;;
esac

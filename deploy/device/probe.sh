# What a device is and what is deployed on it, as lines of name=value. Changes nothing; the file of the flash probe is gone
# when it ends. POSIX sh, sent over standard input; runs on Debian, Ubuntu, Alpine's busybox and Termux alike.
# usage: sh -s -- USER MODEL FLASH     USER: the service user; MODEL: name of the model file; FLASH: yes to measure reads
set -u
service_user=$1 model=$2 flash=$3
say() { printf '%s=%s\n' "$1" "$(printf '%s' "$2" | tr '\n' ' ')"; }
has() { command -v "$1" >/dev/null 2>&1; }
sha() { [ -f "$1" ] && { openssl dgst -sha256 -r "$1" 2>/dev/null || sha256sum "$1" 2>/dev/null; } | cut -d' ' -f1; }
# The nearest folder that exists: what is to be made lies on its file system.
nearest() { at=$1; while [ ! -d "$at" ]; do at=$(dirname "$at"); done; printf '%s' "$at"; }
free_bytes() { df -Pk "$(nearest "$1")" 2>/dev/null | awk 'NR==2 {printf "%.0f", $4 * 1024}'; }
disk_name() { df -Pk "$(nearest "$1")" 2>/dev/null | awk 'NR==2 {print $6}'; }
now_ms() { t=$(date +%s%N 2>/dev/null); case $t in *[!0-9]*|'') awk '{printf "%.0f", $1 * 1000}' /proc/uptime ;; *) echo $((t / 1000000)) ;; esac; }

if [ "$(id -u)" = 0 ]; then
  scope=system prefix=/opt/moefleet config=/etc/moefleet state=/var/lib/moefleet
else
  scope=user prefix=$HOME/.moefleet config=$HOME/.moefleet/etc state=$HOME/.moefleet/state
fi
say scope "$scope"; say prefix "$prefix"; say config "$config"; say state "$state"; say login "$(id -un)"

say os "$(uname -s)"; say arch "$(uname -m)"; say kernel "$(uname -r)"; say hostname "$(uname -n)"
say distribution "$(. /etc/os-release 2>/dev/null && printf '%s' "${PRETTY_NAME:-}")"
say board "$({ tr -d "\\0" </proc/device-tree/model || cat /sys/class/dmi/id/product_name; } 2>/dev/null)"
libc=$(getconf GNU_LIBC_VERSION 2>/dev/null | awk '{print $2}')
[ -n "$libc" ] || libc=$(ldd --version 2>/dev/null | awk 'NR==1 && /GLIBC|GNU libc/ {print $NF}')
say glibc "$libc"
# The symbols it has tell the version of libstdc++.
for library in /usr/lib/*/libstdc++.so.6 /usr/lib64/libstdc++.so.6 /usr/lib/libstdc++.so.6; do
  if [ -r "$library" ]; then say glibcxx "$(grep -ao 'GLIBCXX_3\.4\.[0-9]*' "$library" | sed 's/GLIBCXX_//' | sort -t. -k3 -n | tail -n 1)"; break; fi
done
say memory_bytes "$(awk '/^MemTotal:/ {printf "%.0f", $2 * 1024}' /proc/meminfo)"
say available_bytes "$(awk '/^MemAvailable:/ {printf "%.0f", $2 * 1024}' /proc/meminfo)"
say cores "$(grep -c ^processor /proc/cpuinfo)"
say pressure "$([ -r /proc/pressure/memory ] && echo yes || echo no)"
if [ -f /sys/fs/cgroup/cgroup.controllers ]; then
  say cgroup 2; say cgroup_memory "$(grep -qw memory /sys/fs/cgroup/cgroup.controllers && echo yes || echo no)"
elif grep -q '[[:space:]]cgroup[[:space:]]' /proc/mounts 2>/dev/null; then
  say cgroup 1; say cgroup_memory "$(grep -Eq 'cgroup .*[, ]memory' /proc/mounts && echo yes || echo no)"
else
  say cgroup none; say cgroup_memory no
fi
say systemd "$([ -d /run/systemd/system ] && [ "$scope" = system ] && systemctl --version 2>/dev/null | awk 'NR==1 {print $2}')"
say systemd_notify "$(has systemd-notify && echo yes || echo no)"
for tool in tar zstd gzip sha256sum setsid; do say "tool_$tool" "$(has $tool && echo yes || echo no)"; done
say clock_ms "$(($(date +%s) * 1000))"
say prefix_disk "$(disk_name "$prefix")"; say prefix_free_bytes "$(free_bytes "$prefix")"
say state_disk "$(disk_name "$state")"; say state_free_bytes "$(free_bytes "$state")"

# Reads that pass the page cache, of a file that is written for it: what experts will be read at.
if [ "$flash" = yes ] && [ "$(free_bytes "$state" || echo 0)" -gt 268435456 ] 2>/dev/null; then
  file=$(nearest "$state")/.moefleet-probe.$$
  trap 'rm -f "$file"' EXIT HUP INT TERM
  if dd if=/dev/zero of="$file" bs=1048576 count=32 conv=fsync 2>/dev/null; then
    began=$(now_ms)
    if dd if="$file" of=/dev/null bs=1048576 iflag=direct 2>/dev/null; then
      took=$(($(now_ms) - began)); [ "$took" -gt 0 ] || took=1
      say direct_io yes; say flash_bytes_per_second "$((33554432 * 1000 / took))"
    else
      say direct_io no
    fi
  fi
  rm -f "$file"
fi

# What is there of an earlier deployment.
say user_exists "$(id "$service_user" >/dev/null 2>&1 && echo yes || echo no)"
say installed_bundle "$(cat "$prefix/current/.bundle-sha256" 2>/dev/null)"
say settings_sha256 "$(sha "$config/agent.env")"
say key_sha256 "$(sha "$config/bundle-key.pub")"
say unit_sha256 "$(sha /etc/systemd/system/moefleet-agent.service)"
say launcher_sha256 "$(sha "$prefix/launcher.sh")"
say enrolled "$([ -s "$state/device-cert.pem" ] && echo yes || echo no)"
if [ -n "$model" ] && [ -f "$state/models/$model" ]; then
  seen=$(ls -ln "$state/models/$model" | awk '{print $5}')-$(date -r "$state/models/$model" +%s 2>/dev/null)
  # The hash of a large file takes its time; it is taken anew only where size or time have changed since.
  if [ "$(sed -n 2p "$state/models/$model.sha256" 2>/dev/null)" = "$seen" ]; then say model_sha256 "$(sed -n 1p "$state/models/$model.sha256")"
  else say model_sha256 "$(sha "$state/models/$model")"; fi
fi
if [ -d /run/systemd/system ] && [ "$scope" = system ]; then
  say running "$(systemctl is-active --quiet moefleet-agent.service && echo yes || echo no)"
elif [ -x "$prefix/launcher.sh" ]; then
  say running "$("$prefix/launcher.sh" status >/dev/null 2>&1 && echo yes || echo no)"
else
  say running no
fi
say complete yes

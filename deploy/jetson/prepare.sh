#!/bin/sh
# Looks at what costs an agent speed on a Jetson, and with --apply sets the power mode and the clocks. Run on the board.
# UNTESTED ON BOARDS so far.
set -eu
apply=no
case "${1:-}" in '') ;; --apply) apply=yes ;; *) echo "usage: prepare.sh [--apply]" >&2; exit 2 ;; esac
[ -r /etc/nv_tegra_release ] || { echo "this is no Jetson (there is no /etc/nv_tegra_release)" >&2; exit 1; }
echo "release: $(head -n 1 /etc/nv_tegra_release)"

glibc=$(getconf GNU_LIBC_VERSION | awk '{print $2}')
if [ "$(printf '2.34\n%s\n' "$glibc" | sort -V | head -n 1)" != 2.34 ]; then echo "glibc $glibc: too old for the bundle, which needs 2.34; install JetPack 6"; fi

if command -v nvpmodel >/dev/null 2>&1; then
  echo "power mode: $(nvpmodel -q 2>/dev/null | head -n 1)"
  if [ "$apply" = yes ]; then nvpmodel -m 0; jetson_clocks; echo "power mode 0 and full clocks are set; they last until the next boot, but for the mode"
  else echo "  the fastest is mode 0 on most boards: sh prepare.sh --apply"
  fi
fi
if grep -q '^/dev/zram' /proc/swaps; then echo "swap in memory (zram) is on: what it takes from the agent stays in memory; see README.md"; fi

at=/var/lib/moefleet
[ -d "$at" ] || at=/var/lib
disk=$(df -P "$at" | awk 'NR==2 {print $1}')
case $disk in
  /dev/nvme*) echo "experts: on $disk" ;;
  *) echo "experts: on $disk, which is no NVMe; mount one at /var/lib/moefleet before you deploy" ;;
esac

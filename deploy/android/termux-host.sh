#!/data/data/com.termux/files/usr/bin/sh
# In Termux: a Debian under proot whose sshd `moefleet deploy ssh root@PHONE:8022` reaches, and a wake lock. Safe to run twice.
# UNTESTED ON PHONES so far.
# usage: termux-host.sh PUBLIC-KEY | termux-host.sh --start     --start: after a reboot
set -eu
port=8022
[ $# -eq 1 ] || { echo "usage: termux-host.sh PUBLIC-KEY | termux-host.sh --start" >&2; exit 2; }
command -v proot-distro >/dev/null 2>&1 || { echo "proot-distro is missing: pkg install proot-distro" >&2; exit 1; }
debian() { proot-distro login debian -- "$@"; }

if [ "$1" != --start ]; then
  case $1 in ssh-*|ecdsa-*|sk-*) ;; *) echo "\"$1\" is no ssh public key" >&2; exit 2 ;; esac
  proot-distro login debian -- true 2>/dev/null || proot-distro install debian
  debian sh -c 'command -v sshd >/dev/null && command -v zstd >/dev/null || { apt-get update && apt-get install -y --no-install-recommends openssh-server zstd libstdc++6 procps; }'
  debian sh -c 'umask 077; mkdir -p /root/.ssh; touch /root/.ssh/authorized_keys; grep -qxF "$1" /root/.ssh/authorized_keys || printf "%s\n" "$1" >>/root/.ssh/authorized_keys' sh "$1"
fi

termux-wake-lock 2>/dev/null || echo "no wake lock: pkg install termux-tools"
# A proot ends with its first process, so sshd stays in the foreground of one, and that in the background of Termux.
nohup proot-distro login debian -- sh -c "mkdir -p /run/sshd; /usr/sbin/sshd -D -e -p $port -o UsePAM=no -o PasswordAuthentication=no" </dev/null >"$HOME/moefleet-sshd.log" 2>&1 &
if [ "$1" = --start ]; then
  nohup proot-distro login debian -- sh -c '[ -x /opt/moefleet/launcher.sh ] && exec /opt/moefleet/launcher.sh run' </dev/null >/dev/null 2>&1 &
fi
echo "sshd listens on port $port; from your machine: moefleet deploy ssh root@PHONE:$port --user root --model FILE --coordinator HOST:7400"

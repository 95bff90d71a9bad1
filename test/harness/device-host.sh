#!/bin/sh
# The first process of a test's device, in mount, PID, host name and network namespaces of its own: makes ROOT the root
# folder, with the machine's /usr to read, and lives until it is killed.
# usage: device-host.sh ROOT NAME GROUP     GROUP: folder of a control group (version 2) in which systemd runs as the first
# process; empty: sshd alone runs
set -eu
root=$1 name=$2 group=$3
if [ -n "$group" ] && [ "${IN_GROUP:-no}" = no ]; then
  # What systemd sees as the root of all groups is this one.
  mkdir "$group"
  echo 0 >"$group/cgroup.procs"
  IN_GROUP=yes exec unshare --cgroup sh "$0" "$@"
fi
hostname "$name"
mount --make-rprivate /
mount --bind "$root" "$root"
mount --rbind -o ro /usr "$root/usr"
mount -o remount,ro,bind "$root/usr"
mount --bind "$root/local" "$root/usr/local"
# The device's own tools: what shall be missing here is covered by a file that cannot be run.
while read -r tool; do mount --bind /dev/null "$root/usr/bin/$tool"; done <"$root/missing-tools"
mount -t proc proc "$root/proc"
mount -t tmpfs -o mode=755 tmpfs "$root/dev"
for node in null zero full random urandom tty; do : >"$root/dev/$node"; mount --bind "/dev/$node" "$root/dev/$node"; done
mkdir "$root/dev/pts" "$root/dev/shm"
mount -t devpts -o newinstance,ptmxmode=0666,mode=620 devpts "$root/dev/pts"
ln -s pts/ptmx "$root/dev/ptmx"
mount -t tmpfs -o mode=1777 tmpfs "$root/dev/shm"
mount -t sysfs -o ro sysfs "$root/sys" 2>/dev/null || mount --rbind -o ro /sys "$root/sys"
mount -t tmpfs -o mode=755 tmpfs "$root/run"
mkdir "$root/run/sshd"
if [ -s "$root/small-opt" ]; then mount -t tmpfs -o "mode=755,size=$(cat "$root/small-opt")" tmpfs "$root/opt"; fi
if [ -n "$group" ]; then
  mount -t cgroup2 cgroup2 "$root/sys/fs/cgroup"
  # The machine's settings are not the device's to change.
  mount --bind "$root/proc/sys" "$root/proc/sys"
  mount -o remount,ro,bind "$root/proc/sys"
fi
cd "$root"
mkdir -p old
pivot_root . old
umount -l /old
rmdir /old
if [ -n "$group" ]; then exec env -i container=test PATH=/usr/sbin:/usr/bin:/sbin:/bin /lib/systemd/systemd --unit=device.target --log-target=console --show-status=no; fi
/usr/sbin/sshd -e
echo ready
# The first process waits for whatever loses its parent.
while :; do sleep 3600 & wait; done

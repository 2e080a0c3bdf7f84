#!/bin/sh
# Runs its arguments as a container runtime does: as PID 1, in the group POD if it is set, with
# read-only control groups, and with $HOME/termination-log as /dev/termination-log.
set -e
if [ -n "$POD" ]; then
    echo $$ >"$POD/cgroup.procs"
fi
exec unshare --pid --fork --mount-proc --kill-child sh -ec '
    while read -r _ point kind _; do
        case $kind in
        cgroup | cgroup2) mount -o remount,bind,ro "$point" ;;
        esac
    done </proc/self/mounts
    dev=$HOME/dev
    mkdir -p "$dev"
    mount -t tmpfs dev "$dev"
    mkdir "$dev/shm"
    : >"$HOME/termination-log"
    for node in null zero full random urandom; do
        : >"$dev/$node"
        mount --bind "/dev/$node" "$dev/$node"
    done
    : >"$dev/termination-log"
    mount --bind "$HOME/termination-log" "$dev/termination-log"
    mount --rbind "$dev" /dev
    exec "$@"
' container "$@"

# shellcheck shell=sh disable=SC2154,SC2034,SC2086
# The order of a shutdown: swap comes off before dockerd and the container stop. Pages of a process that ends later are
# in swap, and pages of init. rebooted.sh goes on.
begin false
start_unit
cat >/run/systemd/system/victim.service <<END
[Unit]
Before=vramblk-swap.service
[Service]
ExecStart=$project/build/filler $victim_mib 1 /run/enough
ExecStop=/bin/sh -c 'touch /run/enough; kill -CONT \$MAINPID; while kill -0 \$MAINPID; do sleep 1; done'
TimeoutStopSec=600
END
systemctl daemon-reload
systemctl start victim.service
sleep 5
kill -STOP "$(systemctl show -P MainPID victim.service)"
for each in system.slice/victim.service init.scope; do echo 32M >"/sys/fs/cgroup/$each/memory.reclaim"; done
swap_holds "$((victim_mib / 2))" || fail 'hardly anything is in swap'
[ "$(swap_of 1)" -gt 0 ] || fail 'nothing of init is in swap'
note "$(swap_used_mib) MiB in swap, $(swap_of 1) KiB of them init's"
touch "$project/rebooted"
systemctl reboot
sleep 1000

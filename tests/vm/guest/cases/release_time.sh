# shellcheck shell=sh disable=SC2154,SC2034,SC2086,SC2046,SC3045
# How long `release` takes by how full a device is: the table of docs/swap.md. There is room for the pages in memory, and
# promise 10 holds on the way. Not more than 240 MiB: each page may be a mapping of its own on the machine that runs the
# guest, which allows 65,530.
cat >/run/bin/swapoff <<END
#!/bin/sh
since=\$(cut -d ' ' -f 1 /proc/uptime)
$(command -v swapoff) "\$@"
status=\$?
awk -v since="\$since" '{ print \$1 - since }' /proc/uptime >/run/swapoff.seconds
exit "\$status"
END
chmod +x /run/bin/swapoff
start_server
attach
start_filler 240 1 /run/enough
sleep 20 # it has written its pages
kill -STOP "$filler"
for round in 1 2 3; do
    for wanted in 0 60 120 180 230; do
        [ "$wanted" = 0 ] || echo "${wanted}M" >/sys/fs/cgroup/victim/memory.reclaim || note "asked for $wanted MiB, less came"
        used=$(swap_used_mib) before=$(cut -d ' ' -f 1 /proc/uptime)
        vramblk-swap release all 2>/run/err || fail "release with $used MiB: $(cat /run/err)"
        note "release of a device with $used MiB in it: $(awk -v since="$before" '{ print $1 - since }' /proc/uptime) s," \
            "swapoff alone $(cat /run/swapoff.seconds) s"
        vramblk-swap take all 2>/run/err || fail "take: $(cat /run/err)"
    done
done
touch /run/enough
kill -CONT "$filler"
verified 'after all releases: every page as written (promise 10)'
expect 0 'down' vramblk-swap down
stop_server

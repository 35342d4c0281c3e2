# shellcheck shell=sh disable=SC2154,SC2034,SC2086,SC2046,SC3045
# How long `release` takes by how full a device is: the table of docs/swap.md. There is room for the pages in memory, and
# promise 10 holds on the way.
start_server
attach
start_filler "$((VM_SWAP_MIB - 64))" 1 /run/enough
until_true 300 grep -q '^MemAvailable' /proc/meminfo
sleep 60 # it has written its pages
for wanted in 0 64 128 256 384; do
    [ "$wanted" = 0 ] || echo "${wanted}M" >/sys/fs/cgroup/victim/memory.reclaim || note "asked for $wanted MiB, less came"
    used=$(swap_used_mib) before=$(cut -d ' ' -f 1 /proc/uptime)
    vramblk-swap release all 2>/run/err || fail "release with $used MiB: $(cat /run/err)"
    note "release of a device with $used MiB in it: $(awk -v since="$before" '{ print $1 - since }' /proc/uptime) s"
    vramblk-swap take all 2>/run/err || fail "take: $(cat /run/err)"
done
touch /run/enough
verified 'after all releases: every page as written (promise 10)'
expect 0 'down' vramblk-swap down
stop_server

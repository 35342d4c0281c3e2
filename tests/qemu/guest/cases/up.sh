# shellcheck shell=sh disable=SC2154,SC2034,SC2086
# `make up SWAP=1`: the container, then swap on it; promises 1, 2, 3 and 6 in the container, with Docker around it.
begin true
expect 0 'make up SWAP=1 starts the container and turns swap on' make --no-print-directory up SWAP=1
swapon_seen || fail '/proc/swaps does not show it'
[ "$(cat /sys/fs/cgroup/system.slice/docker-*.scope/memory.swap.max)" = 0 ] || fail 'the container may be swapped itself'
docker inspect -f '{{.HostConfig.OomScoreAdj}} {{.HostConfig.RestartPolicy.Name}} {{.Config.StopTimeout}}' "$(container)"
remember_server
press
verify 'under pressure' victim
verify 'under pressure' $hogs
compare_server
expect 0 'swap comes off the running container' vramblk-swap down

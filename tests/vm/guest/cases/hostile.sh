# shellcheck shell=sh disable=SC2154,SC2034,SC2086,SC2046,SC3045
# Promise 18: hostile clients on other connections change nothing for the one that carries swap. None of them gets into
# its export, so each has one of its own, which the same thread of the engine serves. There is one device of memory, so
# these lie over the first 4 MiB of it: their clients only read, and their memory is held, as giving it back zeroes it.
clients=
missed=
for each in storm unread; do
    mknod "/dev/mmapper.$each" c "$((0x$(stat -c %t /dev/mmapper)))" "$((0x$(stat -c %T /dev/mmapper)))"
done
cat >/run/exports.yaml <<EOF
exports:
  - {name: vram, size: ${VM_SWAP_MIB}M, mode: swap, device: "map:/dev/mmapper"}
  - {name: storm, size: 4M, mode: swap, allocate: start, device: "map:/dev/mmapper.storm"}
  - {name: unread, size: 4M, mode: swap, allocate: start, device: "map:/dev/mmapper.unread"}
EOF
swap_options="--config /run/exports.yaml --listen-addr unix:/run/vramblk/nbd.sock"
start_server
# The others are no swap: they lie over its memory.
attach VRAMBLK_EXPORT_NAME=vram
remember_server
for each in storm unread; do
    in-group victim /run/build/hostile /run/vramblk/nbd.sock "$each" /run/enough >"/run/$each" &
    clients="$clients $!"
done
start_filler "$((VM_MIB * 5 / 4))" 1
verified 'among hostile clients: every page as written (promise 18)'
expect 0 'the device is attached as before' vramblk-swap status
touch /run/enough
for each in $clients; do
    wait "$each" || missed=$?
done
cat /run/storm /run/unread
[ -z "$missed" ] || fail "an attack never got through: status $missed"
[ "$(awk '/connects/ { print $3 }' /run/storm)" -ge 2000 ] || fail 'hardly any connects'
[ "$(awk '/read nothing/ { print $3 }' /run/unread)" -ge 5 ] || fail 'nobody left replies unread'
pass 'each attack got through, and thousands of connects (promise 18)'
compare_server
expect 0 'down after hostile clients' vramblk-swap down
stop_server

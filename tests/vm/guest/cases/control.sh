# shellcheck shell=sh disable=SC2154,SC2034,SC2086,SC2046,SC3045
# The negative control: the same pressure without the safeguards named in VM_WITHOUT has to hang or fail.
# VM_ROUNDS times, by VM_FILLERS at once, each of which verifies a VM_SHARE-th of its pages; VM_WMEM: net.core.wmem_default.
# With VM_STALL_S the engine, or VM_STALLED, stands still for so long on the way.
[ -z "${VM_WMEM-}" ] || echo "$VM_WMEM" >/proc/sys/net/core/wmem_default
start_server
attach
photograph before
for round in $(seq "${VM_ROUNDS:-1}"); do
    fillers=
    for each in $(seq "${VM_FILLERS:-1}"); do
        start_filler "$((twice_ram / ${VM_FILLERS:-1}))" 1 /run 0 "${VM_SHARE:-1}"
        fillers="$fillers $filler"
    done
    if [ -n "${VM_STALL_S-}" ]; then
        pressed 16
        /run/build/stopper "$(pid_of "${VM_STALLED:-vramblk-engine}")" "$VM_STALL_S" || fail 'stopper'
    fi
    for filler in $fillers; do
        wait_filler
        [ "$filler_status" = 0 ] || fail "a filler ended with status $filler_status"
    done
    pass 'twice the RAM, every page as written'
done
photograph after
note "major faults of the data path: $(cat /run/before.faults /run/after.faults | awk '
    { sum += seen[$2]++ ? $3 - first[$2] : 0; first[$2] = $3 } END { print sum }')"
expect 0 'down' vramblk-swap down

# shellcheck shell=sh disable=SC2154,SC2034,SC2086,SC2046,SC3045
# The negative control: the same pressure without the safeguards named in VM_WITHOUT has to hang or fail.
# VM_FILLERS fillers, each of which verifies a VM_SHARE-th of its pages. With VM_STALL_S the engine stands still for so
# long on the way, and VM_WMEM is how many bytes of requests a socket may then hold.
[ -z "${VM_WMEM-}" ] || echo "$VM_WMEM" >/proc/sys/net/core/wmem_default
start_server
attach
photograph before
fillers=
for each in $(seq "${VM_FILLERS:-1}"); do
    start_filler "$((twice_ram / ${VM_FILLERS:-1}))" "${VM_PASSES:-1}" /run 0 "${VM_SHARE:-1}"
    fillers="$fillers $filler"
done
if [ -n "${VM_STALL_S-}" ]; then
    pressed 16
    /run/build/stopper "$(pid_of "${VM_STALLED:-vramblk-engine}")" "$VM_STALL_S" || fail 'stopper'
    note 'the engine goes on'
fi
for filler in $fillers; do
    wait_filler
    [ "$filler_status" = 0 ] || fail "a filler ended with status $filler_status"
done
pass 'twice the RAM, every page as written'
photograph after
note "major faults of the data path: $(cat /run/before.faults /run/after.faults | awk '
    { sum += seen[$2]++ ? $3 - first[$2] : 0; first[$2] = $3 } END { print sum }')"
expect 0 'down' vramblk-swap down

# shellcheck shell=sh disable=SC2154,SC2034,SC2086,SC2046,SC3045
# The negative control: the same pressure without the safeguards named in VM_WITHOUT has to hang or fail.
# min_free as a name leaves vm.min_free_kbytes as it is.
names=",$VM_WITHOUT,"
case $names in *,min_free,*) VRAMBLK_MIN_FREE_KBYTES=keep && export VRAMBLK_MIN_FREE_KBYTES ;; esac
start_altered_server "$VM_WITHOUT"
attach
start_filler "$twice_ram" "${VM_PASSES:-1}"
verified 'twice the RAM, every page as written'
expect 0 'down' vramblk-swap down

# shellcheck shell=sh disable=SC2154,SC2034,SC2086,SC2046,SC3045
# The rig by itself, with a reference server: nbd loads, /dev/mmapper is memory, pressure reaches swap.
modprobe nbd nbds_max=4 max_part=0 || fail 'modprobe nbd'
pass 'the nbd module loads'
in-group server "$VM_ROOT/.venv/bin/python" -S "$VM_ROOT/tests/vm/guest/reference_server.py" /dev/mmapper "$VM_SWAP_MIB" /run/vramblk/nbd.sock &
until_true 60 test -S /run/vramblk/nbd.sock || fail 'the reference server is not there'
echo 16384 >/proc/sys/vm/min_free_kbytes
echo 0 >/proc/sys/vm/page-cluster
nbd-client -unix /run/vramblk/nbd.sock /dev/nbd0 -name vram -nonetlink -swap -systemd-mark -b 4096 || fail 'nbd-client'
until_true 10 grep -qv '^0$' /sys/block/nbd0/size || fail 'no size'
mkswap /dev/nbd0 || fail 'mkswap'
swapon -p 200 /dev/nbd0 || fail 'swapon'
pass 'a reference server is attached'
free -m
start_filler "$twice_ram" 2
verified 'twice the RAM, every page as written'
cat /proc/swaps
swapoff /dev/nbd0 && nbd-client -d /dev/nbd0

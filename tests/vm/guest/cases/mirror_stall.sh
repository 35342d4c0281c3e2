# shellcheck shell=sh disable=SC2154,SC2034,SC2086,SC2046,SC3045
# Promise 21: a server that stands still for less than the timeout is only slow; for longer, or with device errors, it
# costs the VRAM half, which is rebuilt before it is read again.
start_altered_server
inject_no_more() { dd if=/dev/zero of="$faults" bs=2 count=1 conv=notrunc status=none; }
attach_mirrored
start_filler "$((VM_MIB * 5 / 4))" 1 /run/enough 0 4
pressed

/run/build/stopper "$(pid_of vramblk-engine)" 10 || fail stopper
mirror_is whole || fail 'a stall of 10 s has cost a half'
pass 'engine stopped for 10 s: both halves are there (promise 21)'

# Both halves are written, so the machine waits until the timeout, and no longer.
kill -STOP "$(pid_of vramblk-engine)"
loses_its_half || fail 'the stopped engine has cost no half'
before=$(swapped_out_mib)
goes_on() { [ "$(swapped_out_mib)" -gt "$((before + 16))" ]; }
until_true 60 goes_on || fail 'swap does not go on while the engine stands still'
pass 'engine stopped for longer than the timeout: the VRAM half is dropped, swap goes on (promise 21)'
# Late writes of the old connection are done now, or never.
kill -CONT "$(pid_of vramblk-engine)"
inject_no_more
expect 0 'up rebuilds' vramblk-swap up
is_whole || fail 'the VRAM half was not rebuilt'

inject writes 20
loses_its_half || fail 'a write error has cost no half'
pass 'a device error on a write costs the VRAM half (promise 21)'
inject_no_more
expect 0 'up rebuilds' vramblk-swap up
is_whole || fail 'the VRAM half was not rebuilt'
# More than one, since the kernel tries a read again, and writes what it got from the disk.
inject reads 200
inject writes 50
loses_its_half || fail 'read errors have cost no half'
pass 'device errors on reads cost the VRAM half (promise 21)'
inject_no_more
expect 0 'up rebuilds' vramblk-swap up
is_whole || fail 'the VRAM half was not rebuilt'
touch /run/enough
verified 'stalls, write errors, read errors, three rebuilds: every page as written (promise 21)'
expect 0 'down' vramblk-swap down
left_as_found
stop_server

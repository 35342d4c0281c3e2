# shellcheck shell=sh disable=SC2154,SC2034,SC2086,SC2046,SC3045
# Promise 12: a device that fails writes: the kernel keeps the pages, nothing is lost, the connection lives.
start_altered_server
attach
start_filler "$((VM_MIB * 5 / 4))" 1 /run/enough
pressed
inject writes 40
sleep 5
touch /run/enough
verified '40 batches of writes failed: every page as written (promise 12)'
ask /metrics | grep -E '^vramblk_request_errors_total.*op="write"' || fail 'no write was answered with an error'
ask /metrics | grep -qE '^vramblk_request_errors_total\{[^}]*EIO[^}]*op="write"[^}]*\} [1-9]|^vramblk_request_errors_total\{[^}]*op="write"[^}]*EIO[^}]*\} [1-9]' ||
    fail 'the errors are not EIO'
pass 'failed writes were answered with EIO (promise 12)'
expect 0 'down after write errors' vramblk-swap down
stop_server

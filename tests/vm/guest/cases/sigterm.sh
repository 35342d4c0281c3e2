# shellcheck shell=sh disable=SC2154,SC2034,SC2086,SC2046,SC3045
# Promise 9: told to stop in the middle, the server serves on until swap is off; nothing is lost.
start_server
attach
start_filler "$((VM_MIB * 5 / 4))" 1 /run/enough
pressed
for each in TERM HUP INT TERM; do
    kill "-$each" "$server"
    sleep 2
done
kill -0 "$server" || fail 'the server left under live swap (promise 9)'
ask /status.json | grep -q '"state": *"draining"' || fail 'the server does not say that it drains'
sleep 15
touch /run/enough
verified 'SIGTERM, SIGHUP, SIGINT and a second SIGTERM in the middle: every page as written (promise 9)'
kill -0 "$server" || fail 'the server left although swap is still on (promise 9)'
grep -q still_attached "$server_log" || fail 'the server does not say who is attached'
grep -q 'vramblk-swap down' "$server_log" || fail 'the server does not say which command detaches'
expect 0 'down takes swap off a server that drains' vramblk-swap down
expect 1 'up attaches no server that was told to stop' vramblk-swap up
swapon_seen && fail 'there is swap on a server that was told to stop'
until_true 60 server_is_gone || fail 'the server does not end after down'
wait "$server"
expect 0 'the server ends with exit 0 once swap is off' test $? = 0

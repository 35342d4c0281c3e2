# shellcheck shell=sh disable=SC2154,SC2034,SC2086,SC2046,SC3045
# Promise 13: one bit flipped behind the server's back is SIGBUS in the process whose page it was, never a wrong page.
mismatches() { metric vramblk_checksum_mismatches_total; }

unhealthy() {
    code=$(curl --silent --max-time 20 --output /dev/null --write-out '%{http_code}' --unix-socket "$status_socket" \
        http://localhost/healthz)
    [ "$code" = 503 ]
}

if left_out checksums; then start_server; else start_server --verify-reads; fi
attach
remember_server
start_named_filler victim "$((VM_MIB * 5 / 4))" 1 /run/enough 1
pressed
expect 0 'before the flip no block mismatches' test "$(mismatches)" = 0
/run/build/flipper "$victim" /dev/mmapper >/run/flipped || fail 'flipper'
cat /run/flipped
page=$(sed 's/.* //' /run/flipped)
touch /run/enough
wait_named_filler victim
# 4: it went on behind the SIGBUS, and no other page differs.
[ "$filler_status" = 4 ] || fail "the victim ended with status $filler_status, expected SIGBUS and nothing else"
grep -q "^filler: SIGBUS in page $page$" /run/victim.log || fail "the SIGBUS was not in page $page"
pass 'a flipped bit is SIGBUS in the victim, and all its other pages are as written (promise 13)'
[ "$(mismatches)" -ge 1 ] || fail 'vramblk_checksum_mismatches_total counts nothing'
grep -q '"event":"checksum_mismatch"' "$server_log" || fail 'the log says nothing'
until_true 10 unhealthy || fail '/healthz says that all is well'
pass 'the mismatch is counted, logged and told by /healthz (promise 13)'
compare_server
start_filler "$((VM_MIB * 5 / 4))" 1
verified 'another process swaps over the same blocks afterwards (promise 13)'
expect 0 'down after a flipped bit' vramblk-swap down
stop_server

# shellcheck shell=sh disable=SC2154,SC2034,SC2086,SC2046,SC3045
# Promise 6 where there is more than RAM and swap hold: the kernel's OOM killer takes from a crowd of small processes,
# each smaller than any of the server's, and passes the server over. Who is left has every page as written.
crowd=$(((VM_MIB + VM_SWAP_MIB) / 16))
start_server
attach
remember_server
fillers=
for each in $(seq "$crowd"); do
    start_filler 16 1 /run 0 8 # all is written, an eighth verified: so many at once are slow
    fillers="$fillers $filler"
done
killed=0 whole=0
for filler in $fillers; do
    wait_filler
    case $filler_status in
    0) whole=$((whole + 1)) ;;
    137) killed=$((killed + 1)) ;;
    *) fail "a filler ended with status $filler_status" ;;
    esac
done
note "$killed of $crowd killed, $whole whole"
[ "$killed" -ge 1 ] || fail 'nobody was killed, so the run proves nothing'
[ "$whole" -ge 1 ] || fail 'nobody was left'
pass 'the OOM killer took from the crowd, and all others have every page as written (promise 6)'
compare_server
expect 0 'down' vramblk-swap down
stop_server

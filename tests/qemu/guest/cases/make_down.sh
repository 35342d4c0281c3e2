# shellcheck shell=sh disable=SC2154,SC2034,SC2086
# `make down` takes swap off first, and does not stop the container while that fails.
begin true
start_swap
server=$(supervisor)
press
make --no-print-directory down >/run/make.log 2>&1
got=$?
cat /run/make.log
[ "$got" != 0 ] || fail 'make down did not refuse'
grep -q 'swap cannot be taken off, so the container is not stopped' /run/make.log || fail 'make down does not say why'
swapon_seen || fail 'swap is off although make down refused'
[ "$(supervisor)" = "$server" ] || fail 'the server is gone'
is_ready || fail 'the server was told to stop'
pass 'make down refuses while swap cannot be taken off, and the server stays ready'
verify 'after make down refused' $hogs
grep -q 'end something large first' /run/make.log || fail 'it was not for want of memory'
expect 0 'make down once swap can be taken off' make --no-print-directory down
is_off || fail 'swap is on'
[ -z "$(docker ps -aq)" ] || fail 'the container is still there'
verify 'after make down' victim

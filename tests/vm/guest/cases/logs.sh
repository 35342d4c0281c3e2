# shellcheck shell=sh disable=SC2154,SC2034,SC2086,SC2046,SC3045
# Promise 17: logs and metrics never block I/O. Nobody reads the log, clients of the status socket read nothing, the
# observer stands still, and all that while engine and supervisor have something to say.
fill_pipe() { dd if=/dev/zero of="$1" bs=4096 oflag=nonblock status=none 2>/dev/null; }

pipes() { readlink "/proc/$1/fd"/* | grep '^pipe:' | sort -u; }

# The pipe that all processes log into: the one that the engine has in common with the observer, since stdout is no pipe.
log_channel() {
    pipes "$(pid_of vramblk-engine)" >/run/pipes.engine
    pipes "$(pid_of vramblk-observe)" | grep -Fxf /run/pipes.engine
}

descriptor_of() { # pid pipe: the first descriptor of that pipe
    for each in "/proc/$1/fd"/*; do
        [ "$(readlink "$each")" = "$2" ] && echo "$each" && return
    done
}

dropped() { [ "$(metric vramblk_dropped_log_lines_total)" -ge 1 ]; }

scrapers=
mkfifo /run/unread
exec 7<>/run/unread
server_log=/run/unread
start_altered_server
attach
remember_server
fill_pipe /run/unread
# A small send buffer, or the whole page would fit into it and nobody would have to wait for the client.
read -r buffer </proc/sys/net/core/wmem_default
echo 4608 >/proc/sys/net/core/wmem_default
for each in 1 2; do
    in-group victim /run/build/hostile "$status_socket" scrape /run/scraped >"/run/scrape.$each" &
    scraper=$! scrapers="$scrapers $!"
done
sleep 5
kill -STOP "$scraper"
observer=$(pid_of vramblk-observe)
start_filler "$((VM_MIB * 5 / 4))" 1
verified 'nobody reads the log, and no scraper reads: every page as written (promise 17)'
kill -STOP "$observer"
channel=$(log_channel | head -n 1)
note "the log channel is $channel of $(log_channel | wc -l)"
fill_pipe "$(descriptor_of "$(pid_of vramblk-supervi)" "$channel")"
start_filler "$((VM_MIB * 5 / 4))" 1 /run/enough
pressed
# Something to say for everybody: errors in the engine, a drain in the supervisor.
inject writes 5
kill -TERM "$server"
sleep 15
touch /run/enough /run/scraped
verified 'the observer stands still and the log takes no line: every page as written (promise 17)'
compare_server
kill -CONT "$observer" "$scraper"
echo "$buffer" >/proc/sys/net/core/wmem_default
until_true 60 dropped || fail 'no line was dropped, so nobody had anything to say'
pass 'lines that found no place were dropped and counted (promise 17)'
for each in $scrapers; do
    wait "$each" || fail "a scraper ended with status $?"
done
cat /run/scrape.1 /run/scrape.2
expect 0 'down' vramblk-swap down
until_true 60 server_is_gone || fail 'the server does not end while nobody reads its log'
wait "$server"
expect 0 'the server ends with exit 0 although nobody reads its log' test $? = 0

# shellcheck shell=sh
# Waits until the server is healthy. A server that was there before is never stopped: a swap server's swap may be live,
# and any other may hold data, whether it answers or not.

# wait_until_healthy CONTAINER SECONDS OLD: OLD is the container that lived before, empty if there was none.
wait_until_healthy() {
    began=$(date +%s)
    while :; do
        state=$(inspect "$1" '{{.State.Status}} {{.RestartCount}}')
        # The container's own check may be minutes apart in swap mode: ask directly.
        case $state in
            'running '*) if docker_in_time exec "$1" vramblk status --health >/dev/null 2>&1; then return 0; fi ;;
        esac
        # If docker does not answer, nothing is known, and there is no reason to stop the server.
        case $state in '' | 'running 0') ;; *) break ;; esac
        [ $(($(date +%s) - began)) -lt "$2" ] || say_still_starting "$1" "$2"
        sleep 1
    done
    line=$(docker_in_time logs --tail 1 "$1" 2>&1 | first_line)
    printf '%s\n' "${line:-the server has logged nothing; state and restarts of its container: $state}" >&2
    stop_what_was_started "$1" "$3" 'the server does not become healthy'
    fail 1 'the server does not become healthy; the container is stopped; more: make logs'
}

# It may only be slow, and its end would not help whoever waits for it.
say_still_starting() {
    docker_in_time exec "$1" vramblk status --health 2>&1 | first_mebibyte | tail -n 1 | first_line >&2
    fail 1 "the server is still starting after $2 s and is left running; see make logs; to wait longer:" \
        "VRAMBLK_UP_TIMEOUT=$(($2 * 5 + 60)) make up${SWAP:+ SWAP=$SWAP}"
}

# stop_what_was_started CONTAINER OLD WHY: ends the script if the container is the old one.
stop_what_was_started() {
    if [ -n "$1" ] && [ "$1" = "$2" ] && is_swap "$1"; then
        fail 1 "$3; it was running before and swap may be live, so it is left alone; see: sudo host/vramblk-swap status"
    fi
    if [ -n "$1" ] && [ "$1" = "$2" ] && lives "$1"; then
        fail 1 "$3; it was running before and may hold data, so it is left alone; see make logs; to stop it: make down"
    fi
    compose stop >/dev/null 2>&1 || true
}

# shellcheck shell=sh disable=SC2154,SC2034
# Promise 9 with Docker: `docker compose restart` and `docker compose down` under live swap wait until swap is off.
drains() { ask /status.json | grep -q '"state": *"draining"'; }

for what in restart down; do
    begin true
    start_swap
    server=$(supervisor)
    press
    docker compose "$what" >"/run/compose.log" 2>&1 &
    compose=$!
    until_true 120 drains || fail "docker compose $what does not reach the server"
    sleep 20
    [ "$(supervisor)" = "$server" ] || fail "docker compose $what ended the server under live swap"
    kill -0 "$compose" || fail "docker compose $what does not wait"
    verify victim "docker compose $what under live swap"
    verify hog "docker compose $what under live swap"
    [ "$(supervisor)" = "$server" ] || fail 'the server left although swap is on'
    expect 0 "vramblk-swap down while docker compose $what waits" vramblk-swap down
    wait "$compose"
    expect 0 "docker compose $what succeeds once swap is off" test $? = 0
    kill -0 "$server" 2>/dev/null && fail 'the server is still there'
    case $what in
    restart) until_true 240 is_ready || fail 'no server after the restart' ;;
    down) [ -z "$(docker ps -aq)" ] || fail 'the container is still there' ;;
    esac
done

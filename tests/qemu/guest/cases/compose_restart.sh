# shellcheck shell=sh disable=SC2154,SC2034,SC2086
# Promise 9 with Docker: `docker compose restart` under live swap waits until swap is off.
compose_waits restart
until_true 240 is_ready || fail 'no server after the restart'
pass 'after docker compose restart there is a new server, which is ready'

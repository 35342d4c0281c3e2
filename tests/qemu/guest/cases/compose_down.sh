# shellcheck shell=sh disable=SC2154,SC2034,SC2086
# Promise 9 with Docker: `docker compose down` under live swap waits until swap is off.
compose_waits down
[ -z "$(docker ps -aq)" ] || fail 'the container is still there'

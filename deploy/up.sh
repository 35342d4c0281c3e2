#!/bin/sh
# The container's life, behind `make up`, `make down`, `make logs` and `make status`; monitoring beside it.
#
#   deploy/up.sh up|down|logs|status|monitoring|exporter|monitoring-down
#
# `up` chooses the compose files for this host's GPU, keeps the choice in .env, builds, starts, waits until the server is
# healthy and prints how to connect. With SWAP=1 it starts the server in swap mode, then turns swap on and starts
# vramblk-swap.service if that is enabled. `down` takes swap off first if it is on.
# What the user wrote to .env or the environment is never changed. What would lose data or cut off clients is refused;
# FORCE=1 does it nevertheless, but never to live swap.
#
# Exit status:
#   1   the server does not become healthy, a port is taken, or something would be lost
#   2   bad usage, or a setting contradicts another
#   78  this host lacks a requirement, which the message names
#
# The files of deploy/lib define functions and run nothing, so that tests can source them one by one.
set -eu

cd "$(dirname "$0")/.."
. deploy/lib/message.sh
. deploy/lib/names.sh
. deploy/lib/settings.sh
. deploy/lib/dotenv.sh
. deploy/lib/docker.sh
. deploy/lib/answers.sh
. deploy/lib/gpu.sh
. deploy/lib/choice.sh
. deploy/lib/conflicts.sh
. deploy/lib/build.sh
. deploy/lib/health.sh
. deploy/lib/loss.sh
. deploy/lib/swap.sh
. deploy/lib/connect.sh
. deploy/lib/monitoring.sh

up() {
    trap tidy EXIT
    trap 'exit 129' HUP
    trap 'exit 130' INT
    trap 'exit 143' TERM
    [ -z "${ARGS:-}" ] ||
        fail 2 "ARGS=$ARGS: make up takes no options of the server; set a variable, here or in .env, such as:" \
            'VRAMBLK_SIZE=1G make up'
    forced || true
    patience_s=$(setting VRAMBLK_UP_TIMEOUT)
    case $patience_s in
        *[!0-9]* | 0?*) fail 2 "VRAMBLK_UP_TIMEOUT=$patience_s; allowed: a whole number of seconds, such as 120" ;;
    esac
    old=$(live_container)
    require_state "$old"
    choose_files "$old"
    check_conflicts "$old"
    build
    # It may have ended while the image was built.
    old=$(live_container)
    if lives "$old" && outdated "$old"; then
        changes=$(changes_to "$old")
        changes=${changes:-the compose files have changed}
        refuse_to_replace "$old" "$(holds "$old")" "$changes"
        say "  the container is replaced: $changes"
    fi
    keep_protections
    write_kept
    if ! start; then
        current=$(container)
        stop_what_was_started "$current" "$old" 'the container cannot be started anew'
        fail 1 'the container cannot be started'
    fi
    current=$(container)
    wait_until_healthy "$current" "$patience_s" "$old"
    [ "${SWAP:-}" != 1 ] || turn_swap_on
    say_how_to_connect "$current"
}

down() {
    forced || true
    # The host's own records come first: docker may not answer while memory is short, and that must not be taken for a
    # server without swap.
    if swap_is_recorded && ! serves_no_swap; then take_swap_off; fi
    old=$(container)
    require_state "$old"
    held=''
    if lives "$old"; then held=$(holds_soon "$old"); fi
    # It may have ended while it was asked.
    if lives "$old"; then
        if is_swap "$old"; then
            case $held in
                '0 '*) ;;
                *)
                    take_swap_off
                    held=$(holds "$old")
                    ;;
            esac
        fi
        refuse_to_stop "$old" "$held"
    fi
    compose down --remove-orphans
    remove_run_dir
}

status() {
    compose ps -a
    current=$(container)
    [ -n "$current" ] || fail 1 'the server is not running; type: make up'
    running "$current" ||
        fail 1 "the server is not running, its container is $(state_of "$current"); make logs shows why"
    show_through first_mebibyte docker_in_time exec "$current" vramblk status
}

logs() {
    current=$(container)
    [ -n "$current" ] || fail 1 'there is no container, so there is no log; type: make up'
    show_through printable compose logs --tail=200 --follow
}

find_docker
read_dotenv
case ${1:-} in
    up) up ;;
    down) down ;;
    logs) logs ;;
    status) status ;;
    monitoring) monitoring ;;
    exporter) monitoring exporter ;;
    monitoring-down) monitoring_compose down && remove_run_dir ;;
    *) fail 2 'usage: deploy/up.sh up|down|logs|status|monitoring|exporter|monitoring-down' ;;
esac

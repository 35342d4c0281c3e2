# shellcheck shell=sh
# Monitoring beside the server: a project of its own, whatever COMPOSE_FILE and COMPOSE_PROJECT_NAME are, so that nothing
# here can touch the server.

monitoring_compose() {
    server=$(given COMPOSE_PROJECT_NAME)
    token=$(given VRAMBLK_MONITORING_TOKEN_PATH)
    # shellcheck disable=SC2086  # two words, or none
    compose -p "${server:-vramblk}-monitoring" --project-directory . -f deploy/monitoring/compose.yaml \
        ${token:+-f deploy/monitoring/compose.token.yaml} "$@"
}

# monitoring [SERVICE]: starts one service of it, or all.
monitoring() {
    image=$(setting VRAMBLK_IMAGE)
    docker image inspect --format '{{.Id}}' "$image" >/dev/null 2>&1 ||
        fail 1 "there is no image $image, which reads the metrics; type: make up"
    check_monitoring_token "$@"
    keep VRAMBLK_MONITORING_TOKEN_PATH
    keep_that_a_token_is_asked_for
    write_kept
    say_compose "up -d${1:+ $1}   (of deploy/monitoring/compose.yaml, beside the server)"
    monitoring_compose up -d "$@"
    say "  metrics, status  http://127.0.0.1:$(setting VRAMBLK_EXPORTER_PORT)/   (in swap mode too)"
    if [ "$#" = 0 ]; then
        say "  Prometheus       http://127.0.0.1:$(setting VRAMBLK_PROMETHEUS_PORT)/" \
            "  Grafana          http://127.0.0.1:$(setting VRAMBLK_GRAFANA_PORT)/"
    fi
    say '  stop             make monitoring-down'
}

# check_monitoring_token [SERVICE]: ends the script if monitoring would be open although the server asks for a token, or if
# Prometheus could not send it.
check_monitoring_token() {
    token=$(given VRAMBLK_MONITORING_TOKEN_PATH)
    if [ -n "$token" ]; then
        # Root's own directory: the daemon can read what this user cannot.
        if [ -d "$(dirname "$token")" ] && ! [ -x "$(dirname "$token")" ]; then return 0; fi
        [ -f "$token" ] ||
            fail 78 "VRAMBLK_MONITORING_TOKEN_PATH=$token is no file; write the token into it, readable for user 65534"
        return 0
    fi
    check_token
    instead="write it to a file that user 65534 can read, and type: VRAMBLK_MONITORING_TOKEN_PATH=FILE make ${1:-monitoring}"
    [ -z "$(given VRAMBLK_METRICS_TOKEN_FILE)" ] ||
        fail 2 "VRAMBLK_METRICS_TOKEN_FILE is a path in the server's container, and the exporter needs the token too; $instead"
    [ -n "${1:-}" ] || [ -z "$(given VRAMBLK_METRICS_TOKEN)" ] ||
        fail 2 "VRAMBLK_METRICS_TOKEN is set, and Prometheus takes a token only from a file; $instead"
    # A file of the user, or a shell that is gone, may have given the server a token that the exporter does not get.
    current=$(container)
    [ -n "$current" ] && [ -z "$(given VRAMBLK_METRICS_TOKEN)" ] || return 0
    ! environment_of "$current" | grep -Eq '^VRAMBLK_METRICS_TOKEN(_FILE)?=.' ||
        fail 2 "the server's container asks for a token that neither .env nor the environment holds; $instead"
}

# Removes the directory of the sockets, unless an exporter runs: it would go on looking into a directory that is gone.
remove_run_dir() {
    [ -z "$(monitoring_compose ps -q exporter 2>/dev/null)" ] || return 0
    rmdir "$(setting VRAMBLK_RUN_DIR)" 2>/dev/null || true
}

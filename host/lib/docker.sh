# shellcheck shell=sh disable=SC2034,SC2154
# The server's container: what could end it under live swap, and its start at boot.

# ExecStop runs only if it is active, not if it is merely enabled; its own ExecStart calls `up` while it is activating.
unit_problem() {
    case $(systemctl is-active vramblk-swap.service 2>/dev/null) in
    active | activating)
        systemctl show --property=Requires vramblk-swap.service 2>/dev/null | grep -q docker ||
            echo 'does not require docker.service; type: sudo make install-host'
        ;;
    *)
        start_it='sudo systemctl start vramblk-swap'
        [ "$(systemctl is-enabled vramblk-swap.service 2>/dev/null)" = enabled ] ||
            start_it="sudo make install-host, then $start_it"
        echo "is not active; type: $start_it"
        ;;
    esac
}

# What makes Docker end the server under live swap. Each was seen to kill init.
check_docker() {
    # With a mirror the end of the server costs the VRAM half, and no page.
    if [ -n "$mirror" ] || is_mirrored; then return 0; fi
    faults=0
    complain() {
        faults=$((faults + 1))
        note "warning: $*"
    }
    if [ -z "$server_pid" ]; then
        complain "the server's process is not found, so it is not known whether Docker could end it"
    elif [ -z "$server_container" ]; then
        return 0
    elif ! command -v docker >/dev/null 2>&1; then
        complain 'the server runs in a container, but docker is not here to be asked how it would be stopped'
    else
        problem=$(unit_problem)
        if [ -z "$problem" ]; then
            :
        elif [ "$(docker info -f '{{.LiveRestoreEnabled}}' 2>/dev/null)" != true ]; then
            complain 'a restart of dockerd would end the server: "live-restore" is not true in /etc/docker/daemon.json,' \
                "and vramblk-swap.service $problem"
        else
            complain "a shutdown ends the server before swap is off: vramblk-swap.service $problem"
        fi
        grace=$(docker inspect -f '{{.Config.StopTimeout}}' "$server_container" 2>/dev/null)
        is_number "$grace" || grace=10
        [ "$grace" -ge 3600 ] ||
            complain "docker kills the server $grace s after a stop: stop_grace_period must be hours;" \
                'start it with compose.swap.yaml'
        policy=$(docker inspect -f '{{.HostConfig.RestartPolicy.Name}}' "$server_container" 2>/dev/null | printable)
        case $policy in
        no | '') ;;
        *) complain "docker restarts the server by itself (restart: $policy), and a restarted server is empty;" \
            'start it with compose.swap.yaml' ;;
        esac
    fi
    [ "$faults" = 0 ] || [ -z "$strict" ] || fail 1 'refused because of the above (--strict)'
}

# Docker does not start a container with restart: "no" at boot, and must not: at any other time an empty server in the
# place of a lost one is a danger. Here no device of a lost server is in use any more.
start_container() {
    command -v docker >/dev/null 2>&1 || return 0
    stopped='' number=0
    for each in $(docker ps -aq --filter label=com.docker.compose.service=vramblk --filter status=exited \
        --filter status=created 2>/dev/null); do
        docker inspect -f '{{range .Config.Env}}{{println .}}{{end}}' "$each" 2>/dev/null |
            grep -qx VRAMBLK_MODE=swap || continue
        stopped=$each number=$((number + 1))
    done
    [ "$number" -le 1 ] || fail 1 "$number stopped containers are servers in swap mode; start the right one: docker start ID"
    [ "$number" = 0 ] || act_printable 600 docker start "$stopped" || fail 1 "the server's container $stopped cannot be started"
}

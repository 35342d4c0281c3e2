# shellcheck shell=sh
# Docker and Compose: the server's container as they describe it. What the server itself answers: see answers.sh.

compose_command=''

# Sets `compose_command`.
find_docker() {
    command -v docker >/dev/null 2>&1 ||
        fail 78 'docker is not installed; type: sudo apt-get install docker.io docker-compose'
    docker version >/dev/null 2>&1 ||
        fail 78 'the Docker daemon does not answer; type: sudo systemctl start docker (or run this with sudo)'
    if docker compose version >/dev/null 2>&1; then
        compose_command='docker compose'
    elif command -v docker-compose >/dev/null 2>&1; then
        compose_command=docker-compose
    else
        fail 78 'Docker Compose is not installed; type: sudo apt-get install docker-compose'
    fi
}

compose() {
    # shellcheck disable=SC2086  # two words for the plugin
    $compose_command "$@"
}

# say_compose WORD...: shows a command of Compose that is about to run.
say_compose() { say "+ $compose_command $*"; }

# inspect CONTAINER TEMPLATE: prints nothing if docker does not answer.
inspect() { docker inspect --format "$2" "$1" 2>/dev/null || true; }

# Prints the id of the service's container, also of a stopped one. Compose v2 lists those only with -a, together with those
# of `compose run`. Ends the script if Compose fails: that must not be taken for "there is none".
container() {
    if ! listed=$(compose ps -a -q vramblk 2>/dev/null); then
        why=$(compose ps -a -q vramblk 2>&1 >/dev/null | tail -n 1) || true
        # An early Compose v2 calls a service without a container so.
        case $why in *'no such service'*) return 0 ;; esac
        fail 1 "Compose does not list the server's container, so nothing is touched: $why"
    fi
    for each in $listed; do
        if [ "$(inspect "$each" '{{index .Config.Labels "com.docker.compose.oneoff"}}')" != True ]; then
            echo "$each"
            return 0
        fi
    done
}

# The container, unless docker reports that it is stopped.
live_container() {
    found=$(container) || return
    case $(state_of "$found") in created | exited | dead) ;; *) echo "$found" ;; esac
}

state_of() { inspect "$1" '{{.State.Status}}'; }

running() { [ -n "$1" ] && [ "$(state_of "$1")" = running ]; }

# Does container $1 have a process, and so memory? A paused one does; one that waits for its restart does not.
lives() { case $(state_of "$1") in created | exited | dead | restarting) return 1 ;; *) [ -n "$1" ] ;; esac; }

# No answer must not be taken for a server without swap.
require_state() {
    if [ -n "$1" ] && [ -z "$(state_of "$1")" ]; then
        fail 1 "docker does not report the container's state, so nothing was changed; type: docker inspect $1"
    fi
}

environment_of() { inspect "$1" '{{range .Config.Env}}{{println .}}{{end}}'; }

# The ports of the host that container $1 has, on lines CONTAINER-PORT HOST-PORT.
published() {
    # shellcheck disable=SC2016  # a template of docker's
    inspect "$1" '{{range $port, $bound := .NetworkSettings.Ports}}{{range $bound}}{{$port}} {{.HostPort}}{{println}}{{end}}{{end}}'
}

# What `compose up` would give the server's container, on lines `image NAME` and `environment NAME=VALUE`. Compose files
# of the user may bring other services.
planned() {
    compose config | awk '
        /^[^ ]/ { top = $1 }
        /^  [^ ]/ { service = $1 }
        /^    [^ ]/ { block = $1 }
        top != "services:" || service != "vramblk:" { next }
        /^    image: / { gsub(/["\047]/, "", $2); print "image " $2 }
        /^      VRAMBLK_/ && block == "environment:" {
            name = $1; sub(/:$/, "", name)
            value = $0; sub(/^[^:]*: */, "", value); sub(/^null$/, "", value)
            if (value ~ /^".*"$/ || value ~ /^\047.*\047$/) value = substr(value, 2, length(value) - 2)
            print "environment " name "=" value
        }'
}

planned_image() { docker image inspect --format '{{.Id}}' "$(planned | sed -n 's/^image //p')"; }

# Would `compose up` replace container $1?
outdated() {
    [ "$(inspect "$1" '{{.Image}}')" = "$(planned_image)" ] || return 0
    hash=$(compose config --hash vramblk 2>/dev/null | awk '{ print $2 }')
    [ "$(inspect "$1" '{{index .Config.Labels "com.docker.compose.config-hash"}}')" != "$hash" ]
}

# How the container that `compose up` would make differs from container $1, on one line.
changes_to() {
    {
        {
            environment_of "$1" | sed 's/^/old /'
            planned | sed -n 's/^environment /new /p'
        } | changed_variables
        changed_port "$1" 10809 VRAMBLK_NBD_PORT "$(setting VRAMBLK_NBD_PORT)"
        changed_port "$1" 10810 VRAMBLK_METRICS_PORT "$(setting VRAMBLK_METRICS_PORT)"
        [ "$(inspect "$1" '{{.Image}}')" = "$(planned_image)" ] || echo 'another image'
    } | awk '{ line = line (NR > 1 ? ", " : "") $0 } END { print line }'
}

# Reads lines `old NAME=VALUE` and `new NAME=VALUE`, writes a line for each difference. A token is not shown.
changed_variables() {
    awk '
        function shown(value) { return value == "" ? "unset" : value }
        !/^(old|new) VRAMBLK_/ { next }
        { name = $2; sub(/=.*/, "", name); value = substr($0, length(name) + 6) }
        /^old/ { old[name] = value }
        /^new/ { new[name] = value; if (!(name in old)) old[name] = "" }
        END {
            for (name in old) if (old[name] != new[name])
                print name (name ~ /TOKEN/ ? "" : ": " shown(old[name]) " becomes " shown(new[name]))
        }' | sort
}

# changed_port CONTAINER PORT NAME WANTED: writes a line if PORT of the container is on another port of the host than WANTED.
changed_port() {
    was=$(published "$1" | sed -n "s|^$2/tcp ||p" | head -n 1)
    case $was:$4 in "$4:$4" | :* | *-*) ;; *) echo "$3: $was becomes $4" ;; esac
}

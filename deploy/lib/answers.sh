# shellcheck shell=sh
# What the server in a container answers. A container that was taken over may answer anything, or never: each answer is
# limited in time and size, and nothing in it reaches the terminal as a command.

printable() { LC_ALL=C tr -c '\n -~' '?'; }

first_mebibyte() { head -c 1048576 | printable; }

first_line() { head -c 1024 | printable | head -n 1; }

# docker_in_time ARGUMENT...: runs docker for at most thirty seconds. Not in the background, where Ctrl+C would not reach
# it: GNU's timeout has an option for that, others need none.
docker_in_time() {
    foreground=--foreground
    timeout "$foreground" 1 true 2>/dev/null || foreground=''
    timeout ${foreground:+"$foreground"} -k 5 30 docker "$@"
}

# show_through FILTER COMMAND...: prints the command's output through the filter; has the command's exit status.
show_through() {
    filter=$1
    shift
    {
        shown=$({ { code=0 && { "$@" 2>&1 3>&- 4>&- || code=$?; } && echo "$code" >&3; } | "$filter" >&4; } 3>&1)
    } 4>&1
    return "$shown"
}

# ask_server CONTAINER EXPRESSION: prints one line, the Python expression's value for the server's `status` document;
# nothing if the server does not answer.
ask_server() {
    docker_in_time exec "$1" vramblk status --json 2>/dev/null | head -c 16777216 |
        docker_in_time exec -i "$1" python -c "import json, sys
status = json.load(sys.stdin)
print($2)" 2>/dev/null | first_line
}

# What ends with the server in container $1, two numbers: its clients, and the bytes that its exports hold; nothing if it
# does not answer.
holds() {
    ask_server "$1" 'len(status["connections"]), sum(export["written_bytes"] for export in status.get("exports", []))' |
        grep -Ex '[0-9]{1,9} [0-9]{1,20}' || true
}

# The same for a server that was just started and may answer a little later, or end.
holds_soon() {
    for attempt in 1 2 3; do
        held=$(holds "$1")
        if [ -n "$held" ] || [ "$attempt" = 3 ] || ! lives "$1"; then break; fi
        sleep 1
    done
    printf '%s\n' "$held"
}

# The name of the first export, as the server in container $1 reports it: a suffix or a YAML file may decide about it.
# Users copy it to a root shell: empty if it is not plain.
export_of() { ask_server "$1" 'status["exports"][0]["name"]' | grep -Ex '[A-Za-z0-9_][A-Za-z0-9._-]*' || true; }

# As the server in container $1 reports it; empty if it does not answer.
mode_of() { ask_server "$1" 'status.get("mode", "")'; }

# Is container $1 a swap server? Ends the script if docker does not answer, which must not be taken for "no swap": every
# container has an environment.
is_swap() {
    variables=$(environment_of "$1")
    [ -n "$variables" ] ||
        fail 1 "docker does not report the container's mode, so nothing was changed; type: docker inspect $1"
    printf '%s\n' "$variables" | grep -qx 'VRAMBLK_MODE=swap' && return 0
    # A YAML file may set the mode.
    printf '%s\n' "$variables" | grep -q '^VRAMBLK_CONFIG=.' && [ "$(mode_of "$1")" = swap ]
}

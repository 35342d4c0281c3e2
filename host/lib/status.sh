# shellcheck shell=sh disable=SC2034,SC2154
# status: what is attached, for people and as JSON.

status() {
    device=$(was_attached device) size='' used='' swap_priority='' verdict=off code=3
    if [ -n "$device" ] && line=$(swap_line "$device"); then
        verdict=on code=0
        size=$(echo "$line" | awk '{ print $3 }') used=$(echo "$line" | awk '{ print $4 }')
        swap_priority=$(echo "$line" | awk '{ print $5 }')
        supervisor_lives || { verdict=orphaned code=1; }
        is_connected "$device" || { verdict=lost code=1; }
    elif [ -s "$records" ]; then
        verdict=interrupted code=1
    fi
    ask_server || answer=''
    server=$(answered "$key_state")
    if [ -n "$json" ]; then print_json; else print_text; fi
    return "$code"
}

print_text() {
    echo "swap      $verdict"
    if [ -n "$size" ]; then
        echo "device    $device   $(was_attached label) $(was_attached uuid)"
        echo "size      $((size / 1024)) MiB, $((used / 1024)) MiB used, priority $swap_priority"
    fi
    case $verdict in
    lost) echo '          its server is gone and the pages in it are lost; type: sudo vramblk-swap down, or reboot' ;;
    orphaned) echo '          its server has lost its supervisor; type: sudo vramblk-swap down, start the server, then up' ;;
    interrupted) echo '          vramblk-swap was interrupted; type: sudo vramblk-swap down' ;;
    esac
    if [ -z "$server" ] && [ -e "$root$status_socket" ] && [ ! -w "$root$status_socket" ]; then
        echo 'server    cannot be asked by this user; type: sudo vramblk-swap status'
    else
        echo "server    ${server:-does not answer}${server:+, mode $(answered "$key_mode"), $(answered "$key_locked") bytes locked}"
    fi
    [ ! -s "$records" ] ||
        with_tabs <"$records" | awk -F "$tab" '$1 == "write" { print "changed   " $2 " to " $3 ", was " $4 }'
}

quote_json() { printf '"%s"' "$(printf '%s' "$1" | sed 's/\\/\\\\/g; s/"/\\"/g')"; }
number_json() { if is_count "${1#-}"; then printf '%s' "$1"; else printf null; fi; }
text_json() { if [ -n "$1" ]; then quote_json "$1"; else printf null; fi; }
kib_json() { if is_count "$1"; then printf '%s' $(($1 * 1024)); else printf null; fi; }

print_json() {
    printf '{"swap": "%s", "device": %s, "size_bytes": %s, "used_bytes": %s, "priority": %s, "label": %s, "uuid": %s, ' \
        "$verdict" "$(text_json "$device")" "$(kib_json "$size")" "$(kib_json "$used")" \
        "$(number_json "$swap_priority")" "$(text_json "$(was_attached label)")" "$(text_json "$(was_attached uuid)")"
    printf '"server": {"state": %s, "mode": %s, "pid": %s, "locked_bytes": %s}, "changed": [' \
        "$(text_json "$server")" "$(text_json "$(answered "$key_mode")")" "$(number_json "$(was_attached server_pid)")" \
        "$(number_json "$(answered "$key_locked")")"
    separator=''
    if [ -s "$records" ]; then
        with_tabs <"$records" | while IFS=$tab read -r kind path set_to was; do
            [ "$kind" = write ] || continue
            printf '%s{"path": %s, "value": %s, "was": %s}' "$separator" "$(quote_json "$path")" "$(quote_json "$set_to")" \
                "$(quote_json "$was")"
            separator=', '
        done
    fi
    printf ']}\n'
}

# shellcheck shell=sh disable=SC2034,SC2154
# status: what is attached, for people and as JSON.

status() {
    verdict=off code=3 devices='' off_exports=''
    size_kib=0 used_kib=0
    while read -r used device; do
        [ -n "$device" ] || continue
        [ -n "$devices" ] || verdict=on code=0
        devices="$devices $device" used_kib=$((used_kib + used))
        size_kib=$((size_kib + $(swap_field 3)))
        has_pages "$device" || verdict=lost code=1
    done <<END
$(ours_by_use)
END
    [ "$verdict" != on ] || supervisor_lives || verdict=orphaned code=1
    mirror_verdict=''
    if [ -n "$devices" ] && is_mirrored; then
        read_mirror
        case $mirror_verdict in
        degraded | disk_failed) verdict=degraded code=1 ;;
        rebuilding) verdict=rebuilding code=0 ;;
        released) verdict=on code=0 ;;
        esac
    fi
    if [ -z "$devices" ] && [ -s "$records" ]; then
        verdict=interrupted code=1
        # After `release all` the settings are still changed.
        [ -n "$(ours)" ] || [ ! -e "$attached" ] || verdict=released code=3
    fi
    ask_server || answer=''
    server=$(answered state)
    if [ -n "$json" ]; then print_json; else print_text; fi
    return "$code"
}

swap_field() { # number of a field in device's line of /proc/swaps
    swap_line "$device" | awk -v field="$1" '{ print $field }'
}

# Swap exports of the server that are no swap now.
print_missing() {
    [ -n "$answer" ] && [ "$verdict" != off ] || return 0
    swap_before=$devices
    choose_missing all
    printf '%s' "$missing"
}

print_text() {
    echo "swap      $verdict"
    [ -z "$devices" ] || echo "size      $((size_kib / 1024)) MiB, $((used_kib / 1024)) MiB used"
    for device in $devices; do
        device_facts "$device"
        echo "device    $device   $export, $(($(swap_field 3) / 1024)) MiB, $(($(swap_field 4) / 1024)) MiB used, priority" \
            "$(swap_field 5)   $used_label $uuid"
        has_pages "$device" || echo "          the server of $device is gone and the pages in it are lost"
    done
    case $mirror_verdict in
    '') ;;
    *) echo "mirror    $mirror_verdict: $disk (${disk_state:-missing}), VRAM half $vram_half (${vram_state:-missing})" ;;
    esac
    case $mirror_verdict in
    degraded) echo '          swap goes on from the disk alone; to fill VRAM again, type: sudo vramblk-swap up' ;;
    released) echo '          swap goes on from the disk alone; to take the VRAM back: sudo vramblk-swap take all' ;;
    disk_failed) echo '          swap goes on from VRAM alone; type: sudo vramblk-swap down, then up with another device' ;;
    rebuilding) echo "          the VRAM half is being filled from the disk: ${rebuilt_percent:-0} %" ;;
    esac
    case $verdict in
    lost) echo '          type: sudo vramblk-swap down, or reboot' ;;
    orphaned) echo '          its server has lost its supervisor; type: sudo vramblk-swap down, start the server, then up' ;;
    interrupted) echo '          vramblk-swap was interrupted; type: sudo vramblk-swap down' ;;
    esac
    print_missing | while IFS=$tab read -r kib _ name; do
        echo "released  $name, $((kib / 1024)) MiB; to take it back: sudo vramblk-swap take all"
    done
    if [ -z "$server" ] && [ -e "$root$status_socket" ] && [ ! -w "$root$status_socket" ]; then
        echo 'server    cannot be asked by this user; type: sudo vramblk-swap status'
    else
        echo "server    ${server:-does not answer}${server:+, mode $(answered mode), $(answered locked_bytes) bytes locked}"
    fi
    [ ! -s "$records" ] ||
        with_tabs <"$records" | awk -F "$tab" '$1 == "write" { print "changed   " $2 " to " $3 ", was " $4 }'
}

quote_json() { printf '"%s"' "$(printf '%s' "$1" | sed 's/\\/\\\\/g; s/"/\\"/g')"; }
number_json() { if is_count "${1#-}"; then printf '%s' "$1"; else printf null; fi; }
text_json() { if [ -n "$1" ] && [ "$1" != - ]; then quote_json "$1"; else printf null; fi; }
kib_json() { if is_count "$1"; then printf '%s' $(($1 * 1024)); else printf null; fi; }

device_json() { # of device
    device_facts "$device"
    printf '"device": %s, "size_bytes": %s, "used_bytes": %s, "priority": %s, "label": %s, "uuid": %s' \
        "$(text_json "$device")" "$(kib_json "$(swap_field 3)")" "$(kib_json "$(swap_field 4)")" \
        "$(number_json "$(swap_field 5)")" "$(text_json "$used_label")" "$(text_json "$uuid")"
}

print_mirror_json() {
    if [ -z "$mirror_verdict" ]; then
        printf '"mirror": null, '
    else
        printf '"mirror": {"state": "%s", "device": %s, "device_state": %s, "vram": %s, "vram_state": %s, "rebuilt_percent": %s}, ' \
            "$mirror_verdict" "$(text_json "$disk")" "$(text_json "$disk_state")" "$(text_json "$vram_half")" \
            "$(text_json "$vram_state")" "$(number_json "$rebuilt_percent")"
    fi
}

# The first keys are those of the first device, as they were when there was one only.
print_json() {
    device=${devices# } device=${device%% *} separator=''
    printf '{"swap": "%s", ' "$verdict"
    if [ -n "$device" ]; then
        device_json
    else
        printf '"device": null, "size_bytes": null, "used_bytes": null, "priority": null, "label": null, "uuid": null'
    fi
    printf ', "total_bytes": %s, "total_used_bytes": %s, "devices": [' "$(kib_json "$size_kib")" "$(kib_json "$used_kib")"
    for device in $devices; do
        printf '%s{' "$separator"
        device_json
        printf ', "export": %s, "gpu": %s, "lost": %s}' "$(text_json "$export")" "$(text_json "$gpu")" \
            "$(if has_pages "$device"; then printf false; else printf true; fi)"
        separator=', '
    done
    printf '], "released": ['
    print_missing | {
        separator=''
        while IFS=$tab read -r kib _ name; do
            printf '%s{"export": %s, "size_bytes": %s}' "$separator" "$(text_json "$name")" "$(kib_json "$kib")"
            separator=', '
        done
    }
    printf '], '
    print_mirror_json
    printf '"server": {"state": %s, "mode": %s, "pid": %s, "locked_bytes": %s}, "changed": [' \
        "$(text_json "$server")" "$(text_json "$(answered mode)")" "$(number_json "$(was_attached server_pid)")" \
        "$(number_json "$(answered locked_bytes)")"
    if [ -s "$records" ]; then
        with_tabs <"$records" | {
            separator=''
            while IFS=$tab read -r kind path set_to was; do
                [ "$kind" = write ] || continue
                printf '%s{"path": %s, "value": %s, "was": %s}' "$separator" "$(quote_json "$path")" \
                    "$(quote_json "$set_to")" "$(quote_json "$was")"
                separator=', '
            done
        }
    fi
    printf ']}\n'
}

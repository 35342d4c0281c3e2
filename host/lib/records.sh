# shellcheck shell=sh disable=SC2034,SC2154
# Commands that change something, the records of what they changed, and how these are undone.

# Descriptor 9 is the lock: a child that stays, such as nbd-client, must not keep it.
act() {
    printf '+ %s\n' "$*" >&2
    [ -n "$dry_run" ] || "$@" 8<&- 9>&- >&2
}

# For commands that wait for the server or its container, and print what it sent. Not a pipe: nbd-client stays. Ctrl+C
# reaches what GNU's timeout runs only with an option that others lack.
act_printable() { # seconds command
    seconds=$1 foreground=--foreground
    shift
    printf '+ %s\n' "$*" >&2
    [ -z "$dry_run" ] || return 0
    timeout "$foreground" 1 true 2>/dev/null || foreground=''
    timeout ${foreground:+"$foreground"} -k 5 "$seconds" "$@" 8<&- 9>&- >"$private/output" 2>&1
    acted=$?
    head -c 4096 "$private/output" | printable >&2
    rm -f "$private/output"
    return "$acted"
}

wait_until() { # seconds command: poll ten times a second
    polls=$(($1 * 10))
    shift
    until "$@"; do
        [ "$polls" -gt 0 ] || return 1
        polls=$((polls - 1))
        sleep 0.1
    done
}

value_of() { # path: its value; of "none [mq-deadline]" the one in brackets
    sed -n -e 's/.*\[\([^]]*\)\].*/\1/' -e p -e q "$root$1" 2>/dev/null
}

write_value() { # path value
    printf '+ echo %s > %s\n' "$2" "$1" >&2
    [ -n "$dry_run" ] || printf '%s\n' "$2" 2>/dev/null >"$root$1"
}

record() { # words, of which none holds a tab
    # What is not on record would never be undone.
    [ -n "$dry_run" ] || (IFS=$tab && printf '%s\n' "$*") >>"$records" || fail 1 "cannot write $records; is /run full?"
}

# Lines of records on stdin; those from before this version, which have spaces in the place of tabs, with tabs.
with_tabs() { sed "/$tab/!{s/ /$tab/;s/ /$tab/;s/ /$tab/;}"; }

# Set a kernel setting, after writing down what it was. A file that is not there is said and left out. False if it cannot
# be set.
change() { # path value
    if [ ! -e "$root$1" ]; then
        [ -z "$dry_run" ] || write_value "$1" "$2"
        [ -n "$dry_run" ] || note "warning: $1 does not exist here, so it stays as it is"
        return 0
    fi
    change_old=$(value_of "$1")
    [ "$change_old" != "$2" ] || return 0
    record write "$1" "$2" "$change_old"
    if ! write_value "$1" "$2"; then
        note "cannot write $2 to $1"
        return 1
    fi
    if [ -n "$dry_run" ]; then return 0; fi
    change_now=$(value_of "$1")
    [ "$change_now" != "$2" ] || return 0
    # Here, since to the undoing it would look like somebody else's value.
    write_value "$1" "$change_old"
    note "$1 is $change_now after $2 was written to it"
    return 1
}

undo_one() { # one record's words
    case $1 in
    write)
        if [ ! -e "$root$2" ]; then return 0; fi
        undo_now=$(value_of "$2")
        if [ "$undo_now" = "${4-}" ]; then return 0; fi
        if [ "$undo_now" != "$3" ]; then
            note "$2 is $undo_now, which is not what was set here: left as it is"
            return 0
        fi
        write_value "$2" "${4-}"
        ;;
    swapon)
        ! is_no_swap "$2" || return 0
        # The OOM killer ends swapoff before all others, and the last page may have come back by then.
        act swapoff "$2" || is_no_swap "$2"
        ;;
    connect) disconnect "$2" ;;
    mirror) stop_mirror "$2" "$3" "$4" ;;
    modprobe)
        [ -e "$sys/module/$2" ] || return 0
        act modprobe -r "$2" || note "the $2 module is still in use, so it stays loaded"
        ;;
    esac
}

# From the last record to the first, all or those of one device. If swapoff fails, or a record cannot be read, no earlier one may be touched: status 2. What else cannot be
# undone stays on record, for the next `down`: status 1.
undo() { # device, or nothing for all
    undo_failed='' undo_number=0
    if [ -s "$records" ]; then
        undo_number=$(grep -c '' "$records")
        is_number "$undo_number" || { note "cannot read $records"; return 2; }
    fi
    while [ "$undo_number" -gt 0 ]; do
        undo_kind='' undo_line=$(sed -n "${undo_number}p" "$records")
        case $undo_line in *"$tab"*) undo_ifs=$tab ;; *) undo_ifs=' ' ;; esac # a space: from before this version
        IFS=$undo_ifs read -r undo_kind undo_path undo_set undo_old <<END
$undo_line
END
        case $undo_kind in
        write | swapon | connect | mirror | modprobe) ;;
        *)
            # Memory may be short. What this line stands for may still need what those above it stand for.
            note "cannot read line $undo_number of $records"
            return 2
            ;;
        esac
        if [ -n "${1-}" ] && ! is_record_of "$1"; then
            undo_number=$((undo_number - 1))
            continue
        fi
        if undo_one "$undo_kind" "$undo_path" "$undo_set" "$undo_old"; then
            [ -n "$dry_run" ] || sed -i "${undo_number}d" "$records"
        else
            [ "$undo_kind" != swapon ] || return 2
            note "could not undo: $undo_kind $undo_path"
            undo_failed=yes
        fi
        undo_number=$((undo_number - 1))
    done
    [ -z "$dry_run" ] || return 0
    if [ -z "${1-}" ]; then rm -f "$attached"; else forget_device "$1"; fi
    [ -z "$undo_failed" ] || return 1
    [ -n "${1-}" ] || rm -f "$records"
}

is_record_of() { # device; of undo_path
    case $undo_kind:$undo_path in
    "swapon:$1" | "connect:$1" | "write:/sys/block/${1#/dev/}/"*) return 0 ;;
    esac
    return 1
}

# What this run did: everything, or what it added to swap that was on before.
roll_back() {
    [ -n "$undo_on_exit" ] || return 0
    undo_on_exit=''
    if [ -n "$swap_before" ]; then
        [ -z "$fresh" ] || note 'undoing what was done'
        for each in $fresh; do
            undo "$each" || note "not everything could be undone for $each; once the reason is gone type: sudo vramblk-swap down"
        done
        return 0
    fi
    [ -s "$records" ] || { rm -f "$records" "$attached"; return 0; }
    note 'undoing what was done'
    undo || note 'not everything could be undone; once the reason is gone type: sudo vramblk-swap down'
}

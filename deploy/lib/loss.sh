# shellcheck shell=sh
# Refuses what would lose data or cut off clients. FORCE=1 gives both up, but never live swap. HELD is what `holds` has
# printed: clients and bytes, or nothing if the server does not answer.

forced() {
    case ${FORCE:-} in
        '' | 0) return 1 ;;
        1) return 0 ;;
        *) fail 2 "FORCE=$FORCE; allowed: 1, 0 or nothing" ;;
    esac
}

# refuse_with_clients CONTAINER HELD ACTION COMMAND: ends the script if the action cuts off clients or endangers live swap.
refuse_with_clients() {
    attached=${2% *}
    if [ -z "$2" ] && is_swap "$1"; then
        fail 1 "the swap server does not report whether clients are attached; $3 refused; type: sudo host/vramblk-swap status"
    elif [ "${attached:-0}" != 0 ] && is_swap "$1"; then
        fail 1 "clients are attached ($attached) and swap may be live; $3 refused; type first: sudo host/vramblk-swap down"
    elif [ "${attached:-0}" != 0 ] && ! forced; then
        fail 1 "clients are attached ($attached); $3 refused; detach them (nbd-client -d); to cut them off:" \
            "make $4 FORCE=1"
    fi
}

# refuse_to_replace CONTAINER HELD CHANGES
refuse_to_replace() {
    refuse_with_clients "$1" "$2" "replacing the container ($3)" up
    forced && return 0
    [ -n "$2" ] ||
        fail 1 "the running server does not answer, so it may hold data; replacing it ($3) refused; to lose what" \
            'it holds: make up FORCE=1'
    [ "${2#* }" = 0 ] ||
        fail 1 "the running server holds $(size "${2#* }") of data, which its replacement loses ($3); to keep it," \
            'undo the change; to lose it: make up FORCE=1'
}

# refuse_to_stop CONTAINER HELD
refuse_to_stop() {
    refuse_with_clients "$1" "$2" stopping down
    # What lies on a swap device is worth nothing once swap is off.
    if is_swap "$1" || forced; then return 0; fi
    [ -n "$2" ] ||
        fail 1 'the running server does not answer, so it may hold data; stopping refused; see make logs; to lose what it' \
            'holds: make down FORCE=1'
    [ "${2#* }" = 0 ] ||
        fail 1 "the running server holds $(size "${2#* }") of data, which ends with it; stopping refused; copy it first" \
            '(nbdcopy); to lose it: make down FORCE=1'
}

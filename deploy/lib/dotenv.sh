# shellcheck shell=sh
# What `up` writes to .env. A line of the user is never changed. A line of ours follows a comment that repeats it, and
# only while the two agree may `up` change it.

# Lines to append; written by write_kept, once nothing can be refused any more. A choice that was not carried out would
# otherwise decide about the next `up`.
to_keep=''

choice_mark='# make up chose COMPOSE_FILE and may change it; once edited it is yours: '
tls_mark='# make up wrote the next line, which holds while TLS is on: '
token_mark='# make up: the metrics ask for a token. Delete this line to have them without one.'

# Settings that limit who is served what. Typed once, they hold for the next `up` too, which would otherwise serve more.
protections='VRAMBLK_CONFIG VRAMBLK_LISTEN_ADDR VRAMBLK_METRICS_ADDR VRAMBLK_METRICS_TOKEN_FILE VRAMBLK_READ_ONLY
    VRAMBLK_UNIQUE_NAMES VRAMBLK_VERIFY_READS'
# The same for those that only compose.tls.yaml passes on.
tls_protections='VRAMBLK_TLS_DIR VRAMBLK_TLS_VERIFY_PEER'

add_line() {
    to_keep="$to_keep$1
"
}

# remember NAME VALUE: sets NAME for this run and for .env, unless it has a value already.
remember() {
    value=$(given "$1") || return
    if [ -n "$value" ]; then
        say "  $1=$value   (as set already)"
        return 0
    fi
    export "$1=$2"
    add_line "$1=$2"
}

# Is COMPOSE_FILE, $1, what an earlier `up` chose?
chosen_here() { ! printenv COMPOSE_FILE >/dev/null && grep -qxF "$choice_mark$1" .env; }

write_kept() {
    [ -n "$to_keep" ] || return 0
    case $to_keep in
        COMPOSE_FILE=*)
            drop_own_choice
            end_last_line
            printf '%s' "$to_keep" | sed -n "1s/^COMPOSE_FILE=/$choice_mark/p" >>.env
            ;;
    esac
    end_last_line
    printf '%s' "$to_keep" >>.env
    printf '%s' "$to_keep" | sed 's/^.*$/  &   (written to .env)/'
}

end_last_line() { if [ -s .env ] && [ -n "$(tail -c 1 .env)" ]; then echo >>.env; fi; }

# Takes our lines about COMPOSE_FILE out of .env; those about TLS too if TLS is off now. Otherwise a demand for clients'
# certificates would stay, and is refused without TLS.
drop_own_choice() {
    grep -qF "$choice_mark" .env 2>/dev/null || return 0
    others=$(without_own_choice <.env)
    case $to_keep in
        COMPOSE_FILE=*compose.tls.yaml*) ;;
        *) others=$(printf '%s\n' "$others" | without_kept_for_tls) ;;
    esac
    printf '%s' "$others" >.env
}

without_own_choice() {
    awk -v mark="$choice_mark" '
        index($0, mark) == 1 { own["COMPOSE_FILE=" substr($0, length(mark) + 1)]; next }
        !($0 in own) { print }'
}

without_kept_for_tls() {
    awk -v mark="$tls_mark" '
        index($0, mark) == 1 { kept = substr($0, length(mark) + 1); next }
        kept == "" || $0 != kept { print }
        { kept = "" }'
}

keep_protections() {
    for each in $protections; do keep "$each"; done
    if chosen compose.tls.yaml; then
        for each in $tls_protections; do keep "$each"; done
    fi
    keep_that_a_token_is_asked_for
}

# keep NAME: takes its value from the environment for .env, unless .env has a line for it.
keep() {
    value=$(printenv "$1") || return 0
    if in_dotenv "$1"; then
        say_that_it_is_not_kept "$1" "$value"
        return 0
    fi
    # An empty address leaves the decision to a YAML file.
    case $1:$value in *_ADDR:*) ;; *: | *:off | *:false | *:no | *:0) return 0 ;; esac
    case $value in
        # Compose 1.29 replaces ${NAME} and halves backslashes between single quotes too.
        *\'* | *\\* | *\$* | *"
"*) say "  $1 is not remembered, because it holds a quote, a backslash, a dollar or a line break; write it to .env" ;;
        *[!A-Za-z0-9/._-]*) add_line "$1='$value'" ;;
        *)
            [ "$1" != VRAMBLK_TLS_VERIFY_PEER ] || add_line "$tls_mark$1=$value"
            add_line "$1=$value"
            ;;
    esac
}

in_dotenv() { grep -Eq "^[[:space:]]*(export[[:space:]]+)?$1[[:space:]]*=" .env 2>/dev/null; }

# The line in .env may be an earlier `up`'s own, and serve more than what was typed now.
say_that_it_is_not_kept() {
    stands=$(sed -nE "s/^[[:space:]]*(export[[:space:]]+)?$1[[:space:]]*=[[:space:]]*//p" .env | tail -n 1)
    case $stands in "$2" | "'$2'" | "\"$2\"") ;; *) say "  $1=$2 holds for this run only; .env has another value" ;; esac
}

# A secret is not written to a file unasked. A comment records that there was one, and check_token looks for it.
keep_that_a_token_is_asked_for() {
    [ -n "$(printenv VRAMBLK_METRICS_TOKEN)" ] && ! in_dotenv VRAMBLK_METRICS_TOKEN || return 0
    token_is_expected || add_line "$token_mark"
}

token_is_expected() { grep -qxF "$token_mark" .env 2>/dev/null; }

check_token() {
    token_is_expected || return 0
    [ -z "$(given VRAMBLK_METRICS_TOKEN)$(given VRAMBLK_METRICS_TOKEN_FILE)" ] || return 0
    fail 2 'VRAMBLK_METRICS_TOKEN was set at an earlier make up and is not set now, so everybody could read the metrics; set' \
        'it again, best in .env; to do without it, delete the line about it from .env'
}

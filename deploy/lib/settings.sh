# shellcheck shell=sh
# Values of variables, as Compose sees them: the environment first, then .env.

# Lines NAME=VALUE, one for each name of names.sh; set by read_dotenv.
dotenv=''

setting_names() { known_settings | sed 's/=.*//'; }

# given NAME: prints its value; nothing if it is not set.
given() {
    known_settings | grep -Eq "^$1(=|\$)" ||
        fail 1 "$1 is not in deploy/lib/names.sh, so .env was not asked for it; type: python -m tools.shellgen"
    printenv "$1" || printf '%s\n' "$dotenv" | sed -n "s/^$1=//p"
}

# setting NAME: prints its value, or its default if it is empty or not set.
setting() {
    value=$(given "$1") || return
    [ -n "$value" ] || value=$(known_settings | sed -n "s/^$1=//p")
    printf '%s\n' "$value"
}

# Sets `dotenv`. Compose interprets .env, because its grammar differs between its versions: comments, `export`, quotes,
# variables in variables.
read_dotenv() {
    [ -f .env ] || return 0
    answer=$(ask_compose 2>&1) ||
        fail 2 "Compose cannot read .env: $(printf '%s\n' "$answer" | tail -n 1); correct .env"
    dotenv=$(printf '%s\n' "$answer" | plain_values)
    # If .env does not name it, Compose v2 inserts a name of its own.
    grep -q '^[^#]*COMPOSE_PROJECT_NAME' .env ||
        dotenv=$(printf '%s\n' "$dotenv" | sed 's/^COMPOSE_PROJECT_NAME=.*/COMPOSE_PROJECT_NAME=/')
    for each in $(setting_names); do
        case "
$dotenv" in
            *"
$each="*) ;;
            *) fail 2 "Compose does not report the value of $each in .env; write it there as one line of plain text" ;;
        esac
    done
}

# One file that uses every name. The brackets make Compose quote every value in the same way.
ask_compose() {
    {
        printf 'services:\n  ask:\n    image: none\n    environment:\n'
        for each in $(setting_names); do
            # shellcheck disable=SC2016  # Compose is to put the value in
            printf '      %s: "[${%s-}]"\n' "$each" "$each"
        done
    } | compose -f - config
}

# Reads NAME: '[VALUE]', writes NAME=VALUE. A long value has several lines; YAML doubles quotes, Compose doubles dollars.
plain_values() {
    awk '
        open { sub(/^ +/, ""); value = value " " $0 }
        !open && match($0, /^ *[A-Z_]+: \047\[/) {
            name = substr($0, 1, RLENGTH - 4)
            sub(/^ +/, "", name)
            value = substr($0, RLENGTH + 1)
            open = 1
        }
        open && value ~ /\]\047$/ {
            value = substr(value, 1, length(value) - 2)
            gsub(/\047\047/, "\047", value)
            gsub(/\$\$/, "$", value)
            print name "=" value
            open = 0
        }'
}

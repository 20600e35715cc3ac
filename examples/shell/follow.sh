#!/bin/sh
# Follows a topic or pattern, with curl alone. Usage: follow.sh TOPIC CURSOR_FILE [URL]
#
# It prints answers that hold events, one a line, and then keeps their cursor: whoever is started again goes on
# there. WALCAST_HEADER names a file with a line `Authorization: Bearer …`.
set -eu
topic=${1:?usage: follow.sh TOPIC CURSOR_FILE [URL]}
file=${2:?usage: follow.sh TOPIC CURSOR_FILE [URL]}
url=${3:-http://127.0.0.1:8480}/v1/events
line='
'

keep() {
    printf '%s\n' "$1" >"$file.new"
    mv "$file.new" "$file"
}

while :; do
    after=
    [ ! -e "$file" ] || after=$(cat "$file")
    # Without a place the answer comes at once, for the place is in it.
    answer=$(curl -siG --max-time 75 ${WALCAST_HEADER:+-H "@$WALCAST_HEADER"} --data-urlencode "topic=$topic" \
        ${after:+-d "after=$after"} -d "wait=${after:+5}0" "$url") || answer=
    answer=$(printf '%s' "$answer" | tr -d '\r')
    head=${answer%%"$line$line"*}
    body=${answer#*"$line$line"}
    status=$(printf '%s\n' "$head" | sed -n '1s/^[^ ]* \([0-9]*\).*/\1/p')
    case $status in
        200)
            case $body in
                *'"events":[]'*) ;;
                *) printf '%s\n' "$body" ;;
            esac
            keep "$(printf '%s\n' "$head" | sed -n 's/^[Ww]alcast-[Cc]ursor: //p')"
            ;;
        410) # Something may have been missed. What is so now follows.
            echo reset
            keep "$(printf '%s\n' "$body" | sed -n 's/.*"resume": *"\([^"]*\)".*/\1/p')"
            ;;
        400 | 40[1-4])
            printf '%s\n' "$body" >&2 # Asking again would change nothing.
            exit 1
            ;;
        *) # Not reachable, overloaded, going away. A random pause, for we are many.
            sleep "$(awk -v seed="$$$(date +%S)" 'BEGIN { srand(seed); print 1 + 4 * rand() }')"
            ;;
    esac
done

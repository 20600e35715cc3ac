#!/bin/sh
# A VM that waits for its assignment, with curl alone. Usage: vm.sh HOSTNAME [URL]
#
# It asks for the current value and names the version that it has. The answer comes when there is another: at
# once, or up to 50 s later. Of several changes in between it sees the last, which is what a machine wants.
#
# WALCAST_HEADER names a file with a line `Authorization: Bearer …`: what a command is given is seen by all users.
set -eu
url=${2:-http://127.0.0.1:8480}/v1/state/vm/${1:?usage: vm.sh HOSTNAME [URL]}
version=
line='
'

while :; do
    # Half an answer is none.
    answer=$(curl -si --max-time 75 ${WALCAST_HEADER:+-H "@$WALCAST_HEADER"} \
        ${version:+-H "If-None-Match: $version"} "$url?wait=50&client=$1") || answer=
    answer=$(printf '%s' "$answer" | tr -d '\r')
    head=${answer%%"$line$line"*}
    body=${answer#*"$line$line"}
    status=$(printf '%s\n' "$head" | sed -n '1s/^[^ ]* \([0-9]*\).*/\1/p')
    case $status in
        200)
            version=$(printf '%s\n' "$head" | sed -n 's/^[Ee][Tt][Aa][Gg]: //p')
            printf 'run %s\n' "$body"
            ;;
        304) ;; # Nothing new.
        404)
            case $body in
                *'"code":"not_found"'*) ;; # None, or the one that we had is gone.
                *) printf '%s\n' "$body" >&2 # No broker, or not this port.
                    exit 1 ;;
            esac
            [ -z "$version" ] || echo free
            version=
            ;;
        400 | 40[1-3])
            printf '%s\n' "$body" >&2 # Asking again would change nothing.
            exit 1
            ;;
        *) # Not reachable, overloaded, going away. A random pause, for we are many.
            sleep "$(awk -v seed="$$$(date +%S)" 'BEGIN { srand(seed); print 1 + 4 * rand() }')"
            ;;
    esac
done

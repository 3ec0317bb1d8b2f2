#!/bin/sh
# Deploys the example storefront on this machine, as the command of `tandem executor`. Each version is a process with a
# folder of its own, so that the old one goes on beside the new one. Run again, it finds out what is there already.
#
# Usage: tandem executor --environment NAME -- deploy.sh SERVER FOLDER    (needs curl)
set -eu

server=$1
home=$2/$TANDEM_VERSION

answers() {
    [ -s "$home/address" ] &&
        [ "$(curl -fs --max-time 1 "http://$(cat "$home/address")/")" = "storefront $TANDEM_VERSION" ]
}

stop() {
    [ -s "$home/pid" ] || return 0
    pid=$(cat "$home/pid")
    kill "$pid" 2>/dev/null || return 0
    while kill -0 "$pid" 2>/dev/null; do sleep 0.1; done
}

case $TANDEM_TASK_KIND in
EXPOSE)
    if ! answers; then
        # What an earlier attempt left may hang.
        stop
        rm -rf "$home"
        mkdir -p "$home"
        # It must not write to the executor, which waits for the end of what this command says.
        nohup "$server" "$TANDEM_VERSION" --address-file "$home/address" >"$home/log" 2>&1 &
        echo $! >"$home/pid"
        attempts=0
        until answers; do
            attempts=$((attempts + 1))
            if [ "$attempts" -ge 100 ] || ! kill -0 "$(cat "$home/pid")" 2>/dev/null; then
                echo "$TANDEM_VERSION does not answer: $(tail -n 5 "$home/log")" >&2
                exit 1
            fi
            sleep 0.1
        done
    fi
    echo "$TANDEM_VERSION answers on $(cat "$home/address")" >&2
    ;;
RETIRE)
    stop
    rm -rf "$home"
    echo "$TANDEM_VERSION is gone" >&2
    ;;
esac

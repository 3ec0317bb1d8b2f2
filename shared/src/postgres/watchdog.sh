# Stands between tandem and its PostgreSQL, in a process group of its own, so that Ctrl-C on the
# terminal reaches tandem only. Standard input is a pipe whose other end only tandem holds: it ends
# when tandem lets go or dies, by whatever signal. Standard error is the locked log; the lock lasts
# until the last process that may write there is gone.
#
# Arguments: programs, folder, socket folder, durable and temporary (yes or no), then postgres's own.
bin=$1 folder=$2 sockets=$3 durable=$4 temporary=$5
shift 5

# A process group with a stopped member gets this when tandem dies; the server has a handler of its own.
trap '' HUP

finish() {
    rm -rf "$sockets" 2>/dev/null
    [ "$temporary" = no ] || rm -rf "$folder" 2>/dev/null
    exit "$1"
}

# A cluster is made beside its place and moved there by tandem, so that a half-made one is never used.
if [ -d "$folder/data.new" ]; then
    sync=
    [ "$durable" = yes ] || sync=--no-sync
    "$bin/initdb" -D "$folder/data.new" -U tandem -E UTF8 --locale=C \
        --auth-local=trust --auth-host=reject $sync >&2 </dev/null || finish 1
    echo made
    read -r _ || finish 0
fi

exec 3<&0 # a shell takes standard input from what it runs in the background
"$bin/postgres" -D "$folder/data" "$@" >&2 </dev/null 3<&- &
server=$!
echo "$server"

# Fast shutdown ends with a checkpoint; what is thrown away needs none.
signal=INT
[ "$temporary" = no ] || signal=QUIT
(
    while read -r _; do :; done <&3
    for step in "$signal" QUIT KILL; do
        kill -s "$step" "$server" || exit 0
        polls=0
        while [ "$polls" -lt 100 ] && kill -s 0 "$server"; do
            sleep 0.1
            polls=$((polls + 1))
        done
    done
) >/dev/null 2>&1 &
guard=$!

wait "$server"
status=$?
kill "$guard" 2>/dev/null
finish "$status"

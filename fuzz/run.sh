#!/bin/sh
# Runs fuzz targets, see README.md beside this. Called by `make fuzz`, `make corpus` and by hand:
#
#   fuzz/run.sh run SECONDS [TARGET …]   each so long, two at a time; all without a name
#   fuzz/run.sh replay TARGET FILE       one input again
#   fuzz/run.sh line FILE                an input as a line of a corpus
#   fuzz/run.sh pack [DIRECTORY]         the corpora anew: the least that reaches what they, DIRECTORY/TARGET and
#                                        what the last runs came upon reach together
set -eu
cd "$(dirname "$0")/.."

TARGETS='pgoutput frames values topics cursors messages records edges'
# An input that takes longer, or more memory, is a finding: the largest ones take milliseconds and kilobytes.
LIMITS='-timeout=10 -rss_limit_mb=1024 -max_len=4096'
WORK=${CARGO_TARGET_DIR:-target}/fuzz
BINARIES=${CARGO_TARGET_DIR:-target}/debug

build() {
    RUSTC_WORKSPACE_WRAPPER="$PWD/fuzz/instrument.sh" ${CARGO:-cargo} build --quiet --package rowcast-fuzz
}

# One input a line, written as `printf %b` reads it: `\\`, and `\0` with three octal digits.
unpack() {
    rm -rf "$WORK/$1/seeds"
    mkdir -p "$WORK/$1/seeds" "$WORK/$1/corpus" "fuzz/artifacts/$1"
    number=0
    while IFS= read -r line; do
        number=$((number + 1))
        printf '%b' "$line" >"$WORK/$1/seeds/$number"
    done <"fuzz/corpus/$1.txt"
}

as_lines() {
    for file in "$@"; do
        [ -s "$file" ] || continue
        od -An -v -tu1 "$file" | tr -d '\n'
        echo
    done | awk '{
        line = ""
        for (at = 1; at <= NF; at++) {
            if ($at == 92) line = line "\\\\"
            else if ($at >= 32 && $at < 127) line = line sprintf("%c", $at + 0)
            else line = line sprintf("\\0%03o", $at)
        }
        print line
    }' | LC_ALL=C sort -u
}

# Says nothing but figures, unless there is a finding.
fuzz() {
    unpack "$1"
    log="$WORK/$1/log"
    # shellcheck disable=SC2086
    if "$BINARIES/$1" $LIMITS -max_total_time="$2" -print_final_stats=1 -verbosity=1 \
        -dict="fuzz/dictionaries/$1.txt" -artifact_prefix="fuzz/artifacts/$1/" \
        "$WORK/$1/corpus" "$WORK/$1/seeds" >"$log" 2>&1; then
        runs=$(sed -n 's/^stat::number_of_executed_units: *//p' "$log")
        reached=$(sed -n 's/.*DONE *cov: \([0-9]*\) ft: \([0-9]*\).*/\1 edges, \2 features/p' "$log")
        echo "fuzz $1: $2 s, $runs inputs, $reached, no finding"
        return
    fi
    tail -n 40 "$log"
    input=$(sed -n 's/.*Test unit written to \(.*\)/\1/p' "$log" | tail -n 1)
    echo "fuzz $1: a finding. Replay it with: fuzz/run.sh replay $1 $input"
    return 1
}

# Two at a time: they take a core each.
run() {
    seconds=$1
    shift
    # shellcheck disable=SC2086
    [ $# -gt 0 ] || set -- $TARGETS
    failed=0
    while [ $# -gt 0 ]; do
        fuzz "$1" "$seconds" &
        first=$!
        second=
        if [ $# -gt 1 ]; then
            fuzz "$2" "$seconds" &
            second=$!
            shift
        fi
        shift
        wait "$first" || failed=1
        [ -z "$second" ] || wait "$second" || failed=1
    done
    return "$failed"
}

pack() {
    for target in $TARGETS; do
        unpack "$target"
        least="$WORK/$target/least"
        rm -rf "$least"
        mkdir -p "$least"
        more=${1:+$1/$target}
        [ -d "${more:-none}" ] || more=
        # shellcheck disable=SC2086
        "$BINARIES/$target" $LIMITS -merge=1 "$least" "$WORK/$target/seeds" "$WORK/$target/corpus" $more \
            >"$WORK/$target/merge.log" 2>&1 || { tail -n 20 "$WORK/$target/merge.log"; exit 1; }
        as_lines "$least"/* >"fuzz/corpus/$target.txt"
        echo "$target: $(wc -l <"fuzz/corpus/$target.txt") inputs, $(wc -c <"fuzz/corpus/$target.txt") bytes"
    done
}

case ${1:-} in
run)
    shift
    build
    run "$@"
    ;;
replay)
    build
    # shellcheck disable=SC2086
    "$BINARIES/$2" $LIMITS "$3"
    ;;
line)
    as_lines "$2"
    ;;
pack)
    shift
    build
    pack "$@"
    ;;
*)
    sed -n '2,/^set/{/^#/p;}' "$0" >&2
    exit 2
    ;;
esac

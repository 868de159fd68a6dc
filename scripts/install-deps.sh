#!/bin/sh
# Makes sure that what rowcast's demo and tests need is there: a PostgreSQL server, a linker for Rust,
# and cargo. Says nothing when all is; installs through apt what is missing, as root or with sudo; says
# what to do where it cannot. Starts no server and creates no cluster on the machine. With the argument `fuzz`
# also for what the fuzz targets need: a C++ compiler, for libFuzzer. With `bench` also nginx with nchan, which the
# benchmark compares with; it goes on without them.
set -eu

# The oldest PostgreSQL that the relay supports.
MINIMUM_MAJOR=15

fail() {
    printf 'rowcast: %s\n' "$*" >&2
    exit 1
}

has() {
    command -v "$1" >/dev/null 2>&1
}

# The same places, in the same order, as src/embedded/binaries.rs.
server_directories() {
    if [ -n "${ROWCAST_PG_BIN:-}" ]; then
        printf '%s\n' "$ROWCAST_PG_BIN"
        return
    fi
    if has pg_config; then pg_config --bindir; fi
    printf '%s\n' /usr/lib/postgresql/*/bin /usr/pgsql-*/bin \
        /opt/homebrew/opt/postgresql@*/bin /usr/local/opt/postgresql@*/bin
    printf '%s\n' "$PATH" | tr ':' '\n'
}

has_server() {
    server_directories | {
        while IFS= read -r directory; do
            [ -x "$directory/initdb" ] && [ -x "$directory/postgres" ] || continue
            # "postgres (PostgreSQL) 15.14 (Debian …)" → 15
            major=$("$directory/postgres" --version 2>/dev/null | sed -n 's/.*(PostgreSQL) \([0-9]*\).*/\1/p')
            [ "${major:-0}" -ge "$MINIMUM_MAJOR" ] && exit 0
        done
        exit 1
    }
}

# Runs a command as root.
as_root() {
    if [ "$(id -u)" -eq 0 ]; then
        "$@"
    elif has sudo; then
        sudo "$@"
    else
        fail "installing $missing needs root: run \`apt-get install $missing\` as root, then this again"
    fi
}

apt() {
    as_root env DEBIAN_FRONTEND=noninteractive apt-get -qq -y -o Dpkg::Use-Pty=0 "$@"
}

# The newest server package that apt offers: `postgresql-15`.
server_package() {
    apt-cache search --names-only '^postgresql-[0-9]+$' 2>/dev/null |
        sed -n 's/^postgresql-\([0-9]*\) .*/\1/p' | sort -n | tail -n 1
}

# Installs packages; out-of-date lists that name what the mirror no longer has are the usual reason to fail.
apt_install() {
    printf 'rowcast: installing %s\n' "$*" >&2
    apt install --no-install-recommends "$@" >&2 && return
    apt update
    apt install --no-install-recommends "$@" >&2
}

# A server package makes and starts a cluster `main` on port 5432 unless it is told not to. It is told for
# this one installation only: the machine's configuration is left as it was.
CREATECLUSTER=/etc/postgresql-common/createcluster.conf
NO_MAIN_CLUSTER='create_main_cluster = false # while rowcast installs'

allow_main_cluster() {
    as_root sed -i "/^$NO_MAIN_CLUSTER\$/d" "$CREATECLUSTER"
}

install_without_cluster() {
    apt_install postgresql-common
    trap allow_main_cluster EXIT
    trap 'exit 130' INT TERM
    printf '%s\n' "$NO_MAIN_CLUSTER" | as_root tee -a "$CREATECLUSTER" >/dev/null
    apt_install "$1"
    allow_main_cluster
    trap - EXIT INT TERM
}

install_server() {
    missing="postgresql"
    has apt-get || fail "no PostgreSQL server ($MINIMUM_MAJOR or newer) was found: install one with your" \
        "system's packages (on macOS \`brew install postgresql@17\`), or name its directory in ROWCAST_PG_BIN"
    major=$(server_package)
    if [ -z "$major" ]; then
        apt update
        major=$(server_package)
    fi
    [ "${major:-0}" -ge "$MINIMUM_MAJOR" ] ||
        fail "apt offers ${major:+only }PostgreSQL ${major:-of no version}, and rowcast needs $MINIMUM_MAJOR or" \
            "newer: add the repository of https://apt.postgresql.org, then run this again"
    missing="postgresql-$major"
    install_without_cluster "$missing"
    has_server || fail "$missing was installed, but its programs do not run"
}

install_linker() {
    missing="gcc libc6-dev"
    has apt-get || fail "no C compiler was found, which Rust needs to link: install gcc or clang with your system's packages"
    # shellcheck disable=SC2086 # two packages
    apt_install $missing
}

install_cxx() {
    missing="g++"
    has apt-get || fail "no C++ compiler was found, which libFuzzer needs: install g++ or clang with your system's packages"
    apt_install "$missing"
}

# nginx starts no server here: it is told not to for this one installation, unless the machine says so anyway.
POLICY=/usr/sbin/policy-rc.d

forbid_services() {
    [ ! -e "$POLICY" ] || return 0
    printf '#!/bin/sh\nexit 101\n' | as_root tee "$POLICY" >/dev/null
    trap 'as_root rm -f "$POLICY"' EXIT
    trap 'exit 130' INT TERM
    as_root chmod +x "$POLICY"
}

has_nchan() {
    [ -x /usr/sbin/nginx ] && [ -e /usr/lib/nginx/modules/ngx_nchan_module.so ]
}

# Without it the benchmark has no reference for sockets, and says so.
install_nchan() {
    missing="nginx libnginx-mod-nchan"
    # In a shell of its own, which may fail.
    # shellcheck disable=SC2086 # two packages
    (has apt-get && forbid_services && apt_install $missing) ||
        printf 'rowcast: %s were not installed; the benchmark goes on without nchan\n' "$missing" >&2
}

has cargo || fail "no cargo was found: install Rust from https://rustup.rs, then run this again"
has cc || install_linker
has_server || install_server
[ "${1:-}" != fuzz ] || has c++ || install_cxx
[ "${1:-}" != bench ] || has_nchan || install_nchan

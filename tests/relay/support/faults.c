/* A disk that fails on demand: loaded into the relay by LD_PRELOAD, it stands before the C library's file
 * functions and lets them fail for files beneath FAULTS_DIRECTORY, while the file FAULTS_CONTROL exists.
 * Words in that file say what fails:
 *   full    what takes space: ENOSPC (every other write is cut short first, as on a disk that fills)
 *   fsync   flushing: EIO
 *   write   writing: EIO
 *   once    the first failure is the last: the control file is removed
 * Reading, removing and renaming go on as they do on a full disk. */
#define _GNU_SOURCE
#include <dlfcn.h>
#include <errno.h>
#include <fcntl.h>
#include <stdarg.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/stat.h>
#include <sys/syscall.h>
#include <sys/types.h>
#include <sys/uio.h>
#include <unistd.h>

#define REAL(name) ((__typeof__(&name))dlsym(RTLD_NEXT, #name))

enum { FULL = 1, FSYNC = 2, WRITE = 4 };

/* Which of the faults in `wanted` is on; zero if none. Uses bare system calls, for these are not intercepted. */
static int fault(int wanted) {
    const char *control = getenv("FAULTS_CONTROL");
    if (!control) return 0;
    int file = (int)syscall(SYS_openat, AT_FDCWD, control, O_RDONLY | O_CLOEXEC, 0);
    if (file < 0) return 0;
    char words[64] = {0};
    long length = syscall(SYS_read, file, words, sizeof words - 1);
    syscall(SYS_close, file);
    if (length <= 0) return 0;
    int on = (strstr(words, "full") ? FULL : 0) | (strstr(words, "fsync") ? FSYNC : 0) |
             (strstr(words, "write") ? WRITE : 0);
    on &= wanted;
    if (on && strstr(words, "once")) syscall(SYS_unlinkat, AT_FDCWD, control, 0);
    return on;
}

static int beneath(const char *path) {
    const char *directory = getenv("FAULTS_DIRECTORY");
    if (!directory) return 0;
    size_t length = strlen(directory);
    return strncmp(path, directory, length) == 0 && path[length] == '/';
}

static int is_ours(int fd) {
    char link[64], path[4096];
    snprintf(link, sizeof link, "/proc/self/fd/%d", fd);
    long length = syscall(SYS_readlinkat, AT_FDCWD, link, path, sizeof path - 1);
    if (length <= 0) return 0;
    path[length] = 0;
    return beneath(path);
}

/* How much of a write goes through: all of it, a part, or nothing (with errno). */
static size_t admitted(int fd, size_t count) {
    static int cut;
    if (count == 0 || !is_ours(fd)) return count;
    int on = fault(FULL | WRITE);
    if (!on) return count;
    if ((on & FULL) && count > 1 && __atomic_fetch_xor(&cut, 1, __ATOMIC_RELAXED) == 0) return count / 2;
    errno = (on & WRITE) ? EIO : ENOSPC;
    return 0;
}

ssize_t write(int fd, const void *bytes, size_t count) {
    size_t most = admitted(fd, count);
    if (count && !most) return -1;
    return REAL(write)(fd, bytes, most);
}

ssize_t pwrite64(int fd, const void *bytes, size_t count, off64_t offset) {
    size_t most = admitted(fd, count);
    if (count && !most) return -1;
    return REAL(pwrite64)(fd, bytes, most, offset);
}

ssize_t writev(int fd, const struct iovec *parts, int count) {
    if (is_ours(fd)) {
        int on = fault(FULL | WRITE);
        if (on) return errno = (on & WRITE) ? EIO : ENOSPC, -1;
    }
    return REAL(writev)(fd, parts, count);
}

ssize_t copy_file_range(int in, off64_t *from, int out, off64_t *to, size_t count, unsigned flags) {
    if (is_ours(out)) {
        int on = fault(FULL | WRITE);
        if (on) return errno = (on & WRITE) ? EIO : ENOSPC, -1;
    }
    return REAL(copy_file_range)(in, from, out, to, count, flags);
}

int fsync(int fd) {
    if (is_ours(fd) && fault(FSYNC)) return errno = EIO, -1;
    return REAL(fsync)(fd);
}

int fdatasync(int fd) {
    if (is_ours(fd) && fault(FSYNC)) return errno = EIO, -1;
    return REAL(fdatasync)(fd);
}

static int may_create(const char *path, int flags) {
    if ((flags & O_CREAT) && beneath(path) && access(path, F_OK) != 0 && fault(FULL)) return errno = ENOSPC, 0;
    return 1;
}

int open64(const char *path, int flags, ...) {
    va_list rest;
    va_start(rest, flags);
    mode_t mode = ((flags & O_CREAT) || (flags & O_TMPFILE) == O_TMPFILE) ? va_arg(rest, mode_t) : 0;
    va_end(rest);
    return may_create(path, flags) ? REAL(open64)(path, flags, mode) : -1;
}

int mkdir(const char *path, mode_t mode) {
    if (beneath(path) && fault(FULL)) return errno = ENOSPC, -1;
    return REAL(mkdir)(path, mode);
}

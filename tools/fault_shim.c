/* A library to preload that fails, shortens or signals at a chosen system call on files below a folder.

   Compiled and driven by tests/support/fault_trials.py: it is armed by fault_arm(), counts calls whose file lies below
   the folder, and logs them to a descriptor. Nothing happens before it is armed. */

#define _GNU_SOURCE
#include <dirent.h>
#include <dlfcn.h>
#include <errno.h>
#include <fcntl.h>
#include <limits.h>
#include <signal.h>
#include <stdarg.h>
#include <stdatomic.h>
#include <stdio.h>
#include <string.h>
#include <sys/file.h>
#include <sys/mman.h>
#include <sys/sendfile.h>
#include <sys/stat.h>
#include <sys/statvfs.h>
#include <sys/syscall.h>
#include <sys/types.h>
#include <sys/uio.h>
#include <unistd.h>

enum { ONCE, STICKY, SHORT, SIGNAL };
enum { GO_ON, FAIL, CUT };

static char folder[PATH_MAX];
static size_t folder_length;
static long chosen;
static int what, mode, log_fd = -1, armed;
static char sticky_call[32];
static atomic_long counted;

/* at: the call to act at, from 1 (0: only count); number: the errno, or the signal's number. */
void fault_arm(const char *below, long at, int how, int number, int descriptor) {
    snprintf(folder, sizeof folder, "%s", below);
    folder_length = strlen(folder);
    chosen = at;
    mode = how;
    what = number;
    log_fd = descriptor;
    sticky_call[0] = 0;
    atomic_store(&counted, 0);
    armed = 1;
}

void fault_disarm(void) { armed = 0; }

static int is_below(const char *path) {
    return strncmp(path, folder, folder_length) == 0 && (path[folder_length] == '/' || !path[folder_length]);
}

static void path_of(int fd, char *found) {
    char link[64];
    snprintf(link, sizeof link, "/proc/self/fd/%d", fd);
    ssize_t length = syscall(SYS_readlinkat, AT_FDCWD, link, found, PATH_MAX - 1);
    found[length > 0 ? length : 0] = 0;
}

static int decide(const char *call, const char *path) {
    if (!is_below(path)) return GO_ON;
    long number = atomic_fetch_add(&counted, 1) + 1;
    int hit = chosen && number == chosen;
    if (hit && mode == STICKY) snprintf(sticky_call, sizeof sticky_call, "%s", call);
    if (chosen && number > chosen && mode == STICKY && !strcmp(sticky_call, call)) hit = 1;
    if (log_fd >= 0) {
        char line[PATH_MAX + 64];
        int length = snprintf(line, sizeof line, "%s %s %s\n", hit ? "!" : "-", call, path + folder_length);
        syscall(SYS_write, log_fd, line, (size_t)length);
    }
    if (!hit) return GO_ON;
    if (mode == SIGNAL) {
        syscall(SYS_kill, syscall(SYS_getpid), what);
        return GO_ON;
    }
    return mode == SHORT ? CUT : FAIL;
}

static int at_fd(const char *call, int fd) {
    if (!armed) return GO_ON;
    int before = errno;
    char path[PATH_MAX];
    path_of(fd, path);
    int decided = decide(call, path);
    errno = before;
    return decided;
}

static int at_path(const char *call, int dir, const char *path) {
    if (!armed || !path) return GO_ON;
    int before = errno;
    char whole[2 * PATH_MAX + 2], base[PATH_MAX];
    if (!strncmp(path, "/proc/self/fd/", 14)) {
        ssize_t length = syscall(SYS_readlinkat, AT_FDCWD, path, whole, PATH_MAX - 1);
        whole[length > 0 ? length : 0] = 0;
    } else if (path[0] == '/') {
        snprintf(whole, sizeof whole, "%s", path);
    } else {
        if (dir != AT_FDCWD) path_of(dir, base);
        else if (syscall(SYS_getcwd, base, sizeof base) < 0) base[0] = 0;
        snprintf(whole, sizeof whole, "%s%s%s", base, path[0] ? "/" : "", path);
    }
    int decided = decide(call, whole);
    errno = before;
    return decided;
}

static size_t half(size_t count) { return count > 8192 ? count / 2 / 4096 * 4096 : count > 1 ? count / 2 : count; }

#define REAL(name) \
    static __typeof__(&name) real; \
    if (!real) real = (__typeof__(&name))dlsym(RTLD_NEXT, #name)
#define FAILS(expression) if ((expression) == FAIL) return errno = what, -1

#define OPEN(name) \
    int name(const char *path, int flags, ...) { \
        REAL(name); \
        va_list more; va_start(more, flags); mode_t bits = va_arg(more, mode_t); va_end(more); \
        FAILS(at_path("open", AT_FDCWD, path)); \
        return real(path, flags, bits); \
    }
#define OPENAT(name) \
    int name(int dir, const char *path, int flags, ...) { \
        REAL(name); \
        va_list more; va_start(more, flags); mode_t bits = va_arg(more, mode_t); va_end(more); \
        FAILS(at_path("open", dir, path)); \
        return real(dir, path, flags, bits); \
    }
OPEN(open) OPEN(open64) OPENAT(openat) OPENAT(openat64)

#define TRANSFER(name, call, buffer) \
    ssize_t name(int fd, buffer data, size_t count) { \
        REAL(name); \
        int decided = at_fd(call, fd); \
        FAILS(decided); \
        return real(fd, data, decided == CUT ? half(count) : count); \
    }
#define PLACED(name, call, buffer, offset) \
    ssize_t name(int fd, buffer data, size_t count, offset position) { \
        REAL(name); \
        int decided = at_fd(call, fd); \
        FAILS(decided); \
        return real(fd, data, decided == CUT ? half(count) : count, position); \
    }
#define VECTOR(name, call, offset) \
    ssize_t name(int fd, const struct iovec *parts, int count, offset position) { \
        REAL(name); \
        int decided = at_fd(call, fd); \
        FAILS(decided); \
        if (decided != CUT || !count) return real(fd, parts, count, position); \
        struct iovec part = {parts[0].iov_base, half(parts[0].iov_len)}; \
        return real(fd, &part, 1, position); \
    }
#define VECTOR2(name, call, offset) \
    ssize_t name(int fd, const struct iovec *parts, int count, offset position, int flags) { \
        REAL(name); \
        int decided = at_fd(call, fd); \
        FAILS(decided); \
        if (decided != CUT || !count) return real(fd, parts, count, position, flags); \
        struct iovec part = {parts[0].iov_base, half(parts[0].iov_len)}; \
        return real(fd, &part, 1, position, flags); \
    }
TRANSFER(read, "read", void *) TRANSFER(write, "write", const void *)
PLACED(pread, "read", void *, off_t) PLACED(pread64, "read", void *, off64_t)
PLACED(pwrite, "write", const void *, off_t) PLACED(pwrite64, "write", const void *, off64_t)
VECTOR(preadv, "read", off_t) VECTOR(preadv64, "read", off64_t)
VECTOR(pwritev, "write", off_t) VECTOR(pwritev64, "write", off64_t)
VECTOR2(preadv2, "read", off_t) VECTOR2(preadv64v2, "read", off64_t)
VECTOR2(pwritev2, "write", off_t) VECTOR2(pwritev64v2, "write", off64_t)

#define ON_FD(name, call) \
    int name(int fd) { REAL(name); FAILS(at_fd(call, fd)); return real(fd); }
ON_FD(fsync, "fsync") ON_FD(fdatasync, "fsync")

int close(int fd) {
    REAL(close);
    int decided = at_fd("close", fd), result = real(fd);  /* a close that fails has closed all the same */
    if (decided == FAIL) return errno = what, -1;
    return result;
}

#define ON_PATH(name, call, more, ...) \
    int name(const char *path more) { REAL(name); FAILS(at_path(call, AT_FDCWD, path)); return real(path __VA_ARGS__); }
#define COMMA ,
ON_PATH(unlink, "unlink", ) ON_PATH(rmdir, "unlink", )
ON_PATH(mkdir, "mkdir", COMMA mode_t bits, COMMA bits)
ON_PATH(chmod, "chmod", COMMA mode_t bits, COMMA bits)
ON_PATH(stat, "stat", COMMA struct stat *found, COMMA found)
ON_PATH(lstat, "stat", COMMA struct stat *found, COMMA found)
ON_PATH(stat64, "stat", COMMA struct stat64 *found, COMMA found)
ON_PATH(lstat64, "stat", COMMA struct stat64 *found, COMMA found)
ON_PATH(statvfs, "statvfs", COMMA struct statvfs *found, COMMA found)
ON_PATH(statvfs64, "statvfs", COMMA struct statvfs64 *found, COMMA found)

int fstat(int fd, struct stat *found) { REAL(fstat); FAILS(at_fd("stat", fd)); return real(fd, found); }
int fstat64(int fd, struct stat64 *found) { REAL(fstat64); FAILS(at_fd("stat", fd)); return real(fd, found); }
int fstatat(int dir, const char *path, struct stat *found, int flags) {
    REAL(fstatat); FAILS(at_path("stat", dir, path)); return real(dir, path, found, flags);
}
int fstatat64(int dir, const char *path, struct stat64 *found, int flags) {
    REAL(fstatat64); FAILS(at_path("stat", dir, path)); return real(dir, path, found, flags);
}
int fchmod(int fd, mode_t bits) { REAL(fchmod); FAILS(at_fd("chmod", fd)); return real(fd, bits); }
int mkdirat(int dir, const char *path, mode_t bits) {
    REAL(mkdirat); FAILS(at_path("mkdir", dir, path)); return real(dir, path, bits);
}
int unlinkat(int dir, const char *path, int flags) {
    REAL(unlinkat); FAILS(at_path("unlink", dir, path)); return real(dir, path, flags);
}
int rename(const char *from, const char *to) {
    REAL(rename); FAILS(at_path("rename", AT_FDCWD, from)); return real(from, to);
}
int renameat(int dir, const char *from, int other, const char *to) {
    REAL(renameat); FAILS(at_path("rename", dir, from)); return real(dir, from, other, to);
}
int renameat2(int dir, const char *from, int other, const char *to, unsigned flags) {
    REAL(renameat2); FAILS(at_path("rename", dir, from)); return real(dir, from, other, to, flags);
}
int link(const char *from, const char *to) {
    REAL(link); FAILS(at_path("link", AT_FDCWD, to)); return real(from, to);
}
int linkat(int dir, const char *from, int other, const char *to, int flags) {
    REAL(linkat); FAILS(at_path("link", other, to)); return real(dir, from, other, to, flags);
}
int ftruncate(int fd, off_t size) { REAL(ftruncate); FAILS(at_fd("truncate", fd)); return real(fd, size); }
int ftruncate64(int fd, off64_t size) { REAL(ftruncate64); FAILS(at_fd("truncate", fd)); return real(fd, size); }
int posix_fallocate(int fd, off_t from, off_t size) {  /* gives the error, and leaves errno */
    REAL(posix_fallocate); return at_fd("allocate", fd) == FAIL ? what : real(fd, from, size);
}
int posix_fallocate64(int fd, off64_t from, off64_t size) {
    REAL(posix_fallocate64); return at_fd("allocate", fd) == FAIL ? what : real(fd, from, size);
}
void *mmap(void *place, size_t size, int access, int flags, int fd, off_t from) {
    REAL(mmap);
    if (fd >= 0 && at_fd("mmap", fd) == FAIL) return errno = what, MAP_FAILED;
    return real(place, size, access, flags, fd, from);
}
void *mmap64(void *place, size_t size, int access, int flags, int fd, off64_t from) {
    REAL(mmap64);
    if (fd >= 0 && at_fd("mmap", fd) == FAIL) return errno = what, MAP_FAILED;
    return real(place, size, access, flags, fd, from);
}
ssize_t copy_file_range(int fd, off64_t *from, int to, off64_t *at, size_t count, unsigned flags) {
    REAL(copy_file_range);
    int decided = at_fd("copy", fd);
    FAILS(decided);
    return real(fd, from, to, at, decided == CUT ? half(count) : count, flags);
}
ssize_t sendfile(int to, int fd, off_t *from, size_t count) {
    REAL(sendfile);
    int decided = at_fd("copy", fd);
    FAILS(decided);
    return real(to, fd, from, decided == CUT ? half(count) : count);
}
ssize_t sendfile64(int to, int fd, off64_t *from, size_t count) {
    REAL(sendfile64);
    int decided = at_fd("copy", fd);
    FAILS(decided);
    return real(to, fd, from, decided == CUT ? half(count) : count);
}
int statx(int dir, const char *path, int flags, unsigned mask, struct statx *found) {
    REAL(statx);
    const char *volatile name = path;  /* Rust asks with NULL whether there is such a call; glibc's header denies it */
    FAILS(name && name[0] ? at_path("stat", dir, path) : at_fd("stat", dir));
    return real(dir, path, flags, mask, found);
}
int access(const char *path, int bits) {
    REAL(access); FAILS(at_path("access", AT_FDCWD, path)); return real(path, bits);
}
int faccessat(int dir, const char *path, int bits, int flags) {
    REAL(faccessat); FAILS(at_path("access", dir, path)); return real(dir, path, bits, flags);
}
int flock(int fd, int how) { REAL(flock); FAILS(at_fd("lock", fd)); return real(fd, how); }
ssize_t readlink(const char *path, char *found, size_t size) {
    REAL(readlink); FAILS(at_path("readlink", AT_FDCWD, path)); return real(path, found, size);
}
ssize_t readlinkat(int dir, const char *path, char *found, size_t size) {
    REAL(readlinkat); FAILS(at_path("readlink", dir, path)); return real(dir, path, found, size);
}
FILE *fopen(const char *path, const char *how) {
    REAL(fopen);
    if (at_path("open", AT_FDCWD, path) == FAIL) return errno = what, NULL;
    return real(path, how);
}
FILE *fopen64(const char *path, const char *how) {
    REAL(fopen64);
    if (at_path("open", AT_FDCWD, path) == FAIL) return errno = what, NULL;
    return real(path, how);
}
struct dirent *readdir(DIR *open) {
    REAL(readdir);
    if (at_fd("list", dirfd(open)) == FAIL) return errno = what, NULL;
    return real(open);
}
struct dirent64 *readdir64(DIR *open) {
    REAL(readdir64);
    if (at_fd("list", dirfd(open)) == FAIL) return errno = what, NULL;
    return real(open);
}
DIR *fdopendir(int fd) {
    REAL(fdopendir);
    if (at_fd("open", fd) == FAIL) return errno = what, NULL;
    return real(fd);
}
DIR *opendir(const char *path) {
    REAL(opendir);
    if (at_path("open", AT_FDCWD, path) == FAIL) return errno = what, NULL;
    return real(path);
}

/*
 * Writes down what a process does to the files below a directory, for the tests of power loss alone. Loaded with
 * LD_PRELOAD; for 64-bit Linux with glibc.
 *
 *   TRACE       the file to which events are appended
 *   TRACE_ROOT  the directory, without a slash at its end
 *   UNSYNCED    the name of a file whose syncs are left out, as if the program had none; for the control
 *
 * An event is a struct event, a path, and data. Changes are written down in the order in which they happen. A sync is
 * written down once it has ended, with the number of the events that came before it began: these it has brought to disk.
 * What is written to standard output is an event too: so the trace tells what was promised at which moment.
 *
 * Other calls can change a file, too. After a run, a disk on which all events have arrived is compared with the real files:
 * so a call that this library misses is found.
 */

#define _GNU_SOURCE
#include <dlfcn.h>
#include <errno.h>
#include <fcntl.h>
#include <pthread.h>
#include <stdarg.h>
#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/mman.h>
#include <sys/stat.h>
#include <sys/syscall.h>
#include <sys/uio.h>
#include <unistd.h>

enum { PATH = 4096, INDEX = 32768 };
enum kind { BEGIN = 1, WRITE, SYNC, TRUNCATE, CREATE, UNLINK, RENAME, MKDIR, RMDIR, SAID, SHARED_INDEX, LINK };

struct event {
    uint32_t kind;
    uint32_t path;   /* bytes of the path; of a rename or a link: of both, with a zero between them */
    uint64_t inode;  /* of a beginning: that of the directory */
    uint64_t offset; /* of a write; the size after a truncation; the number of this process's events before a sync */
    uint64_t data;   /* bytes of the data */
};

static pthread_mutex_t lock = PTHREAD_MUTEX_INITIALIZER;
static int trace = -1;
static const char *root;
static size_t root_length;
static uint64_t events;
static void *shared_index; /* the beginning of the log's index in memory */

static void put(enum kind kind, uint64_t inode, uint64_t offset, const char *path, size_t path_length, const void *data,
                size_t size)
{
    struct event event = {kind, (uint32_t)path_length, inode, offset, size};
    struct iovec parts[] = {{&event, sizeof event}, {(void *)path, path_length}, {(void *)data, size}};
    int saved = errno;
    if (syscall(SYS_writev, trace, parts, 3) != (long)(sizeof event + path_length + size))
        abort();
    events++;
    errno = saved;
}

__attribute__((constructor)) static void begin(void)
{
    const char *path = getenv("TRACE");
    root = getenv("TRACE_ROOT");
    if (!path || !root)
        return;
    root_length = strlen(root);
    trace = (int)syscall(SYS_openat, AT_FDCWD, path, O_WRONLY | O_CREAT | O_APPEND | O_CLOEXEC, 0600);
    struct stat found;
    put(BEGIN, stat(root, &found) ? 0 : found.st_ino, 0, NULL, 0, NULL, 0);
}

/* A path below the root, without it; NULL for any other. */
static const char *below_root(const char *path)
{
    return trace >= 0 && !strncmp(path, root, root_length) && path[root_length] == '/' ? path + root_length + 1 : NULL;
}

/* The same for a descriptor. */
static const char *below_root_at(int descriptor, char path[PATH])
{
    char link[64];
    if (trace < 0)
        return NULL;
    int saved = errno;
    snprintf(link, sizeof link, "/proc/self/fd/%d", descriptor);
    ssize_t length = readlink(link, path, PATH - 1);
    errno = saved;
    if (length < 0)
        return NULL;
    path[length] = 0;
    return !strcmp(path, root) ? "" : below_root(path);
}

/* The same for a path that may begin at a directory. */
static const char *below_root_from(int directory, const char *path, char whole[2 * PATH])
{
    char base[PATH], link[64] = "/proc/self/cwd";
    if (trace < 0 || path[0] == '/')
        return below_root(path);
    int saved = errno;
    if (directory != AT_FDCWD)
        snprintf(link, sizeof link, "/proc/self/fd/%d", directory);
    ssize_t length = readlink(link, base, PATH - 1);
    errno = saved;
    if (length < 0)
        return NULL;
    snprintf(whole, 2 * PATH, "%.*s/%s", (int)length, base, path);
    return below_root(whole);
}

static uint64_t inode_of(int descriptor)
{
    struct stat found;
    return fstat(descriptor, &found) ? 0 : found.st_ino;
}

static int ends_with(const char *text, const char *end)
{
    size_t length = strlen(text), part = strlen(end);
    return length >= part && !strcmp(text + length - part, end);
}

/* --- names ------------------------------------------------------------------------------------------------------- */

static int open_traced(int directory, const char *path, int flags, mode_t mode)
{
    char whole[2 * PATH];
    const char *name = below_root_from(directory, path, whole);
    if (!name)
        return (int)syscall(SYS_openat, directory, path, flags, mode);
    pthread_mutex_lock(&lock);
    struct stat before = {0};
    int saved = errno, is_new = fstatat(directory, path, &before, AT_SYMLINK_NOFOLLOW) && (flags & O_CREAT);
    errno = saved;
    int descriptor = (int)syscall(SYS_openat, directory, path, flags, mode);
    if (descriptor >= 0 && is_new)
        put(CREATE, inode_of(descriptor), 0, name, strlen(name), NULL, 0);
    else if (descriptor >= 0 && (flags & O_TRUNC) && before.st_size)
        put(TRUNCATE, inode_of(descriptor), 0, NULL, 0, NULL, 0);
    pthread_mutex_unlock(&lock);
    return descriptor;
}

#define OPEN(name, ...)                                                                                                \
    mode_t mode = 0;                                                                                                   \
    if (flags & (O_CREAT | O_TMPFILE)) {                                                                               \
        va_list rest;                                                                                                  \
        va_start(rest, flags);                                                                                         \
        mode = va_arg(rest, mode_t);                                                                                   \
        va_end(rest);                                                                                                  \
    }                                                                                                                  \
    return open_traced(__VA_ARGS__, path, flags, mode);

int open(const char *path, int flags, ...) { OPEN(open, AT_FDCWD) }
int open64(const char *path, int flags, ...) { OPEN(open64, AT_FDCWD) }
int openat(int directory, const char *path, int flags, ...) { OPEN(openat, directory) }
int openat64(int directory, const char *path, int flags, ...) { OPEN(openat64, directory) }

int unlinkat(int directory, const char *path, int flags)
{
    char whole[2 * PATH];
    const char *name = below_root_from(directory, path, whole);
    if (!name)
        return (int)syscall(SYS_unlinkat, directory, path, flags);
    pthread_mutex_lock(&lock);
    int failed = (int)syscall(SYS_unlinkat, directory, path, flags);
    if (!failed)
        put(flags & AT_REMOVEDIR ? RMDIR : UNLINK, 0, 0, name, strlen(name), NULL, 0);
    pthread_mutex_unlock(&lock);
    return failed;
}

int unlink(const char *path) { return unlinkat(AT_FDCWD, path, 0); }
int rmdir(const char *path) { return unlinkat(AT_FDCWD, path, AT_REMOVEDIR); }

static int enter_traced(enum kind kind, int from, const char *path, int to, const char *new_path, int flags)
{
    char whole[2 * PATH], new_whole[2 * PATH], both[4 * PATH];
    const char *old = below_root_from(from, path, whole), *new = below_root_from(to, new_path, new_whole);
    int length = old && new ? snprintf(both, sizeof both, "%s%c%s", old, 0, new) : 0;
    pthread_mutex_lock(&lock);
    int failed = kind == LINK ? (int)syscall(SYS_linkat, from, path, to, new_path, flags)
                              : (int)syscall(SYS_renameat, from, path, to, new_path);
    if (!failed && length)
        put(kind, 0, 0, both, (size_t)length, NULL, 0);
    pthread_mutex_unlock(&lock);
    return failed;
}

int rename(const char *old, const char *new) { return enter_traced(RENAME, AT_FDCWD, old, AT_FDCWD, new, 0); }
int renameat(int from, const char *old, int to, const char *new) { return enter_traced(RENAME, from, old, to, new, 0); }
int link(const char *old, const char *new) { return enter_traced(LINK, AT_FDCWD, old, AT_FDCWD, new, 0); }
int linkat(int from, const char *old, int to, const char *new, int flags)
{
    return enter_traced(LINK, from, old, to, new, flags);
}

int mkdirat(int directory, const char *path, mode_t mode)
{
    char whole[2 * PATH];
    const char *name = below_root_from(directory, path, whole);
    if (!name)
        return (int)syscall(SYS_mkdirat, directory, path, mode);
    pthread_mutex_lock(&lock);
    int failed = (int)syscall(SYS_mkdirat, directory, path, mode);
    struct stat found;
    if (!failed)
        put(MKDIR, fstatat(directory, path, &found, 0) ? 0 : found.st_ino, 0, name, strlen(name), NULL, 0);
    pthread_mutex_unlock(&lock);
    return failed;
}

int mkdir(const char *path, mode_t mode) { return mkdirat(AT_FDCWD, path, mode); }

/* --- contents ---------------------------------------------------------------------------------------------------- */

ssize_t pwrite64(int descriptor, const void *data, size_t size, off64_t offset)
{
    char path[PATH];
    if (!below_root_at(descriptor, path))
        return syscall(SYS_pwrite64, descriptor, data, size, offset);
    pthread_mutex_lock(&lock);
    ssize_t written = syscall(SYS_pwrite64, descriptor, data, size, offset);
    if (written > 0)
        put(WRITE, inode_of(descriptor), (uint64_t)offset, NULL, 0, data, (size_t)written);
    pthread_mutex_unlock(&lock);
    return written;
}

ssize_t pwrite(int descriptor, const void *data, size_t size, off_t offset)
{
    return pwrite64(descriptor, data, size, offset);
}

ssize_t write(int descriptor, const void *data, size_t size)
{
    char path[PATH];
    int is_traced = below_root_at(descriptor, path) != NULL;
    if (trace < 0 || (!is_traced && descriptor != 1))
        return syscall(SYS_write, descriptor, data, size);
    pthread_mutex_lock(&lock);
    int at_end = is_traced && (fcntl(descriptor, F_GETFL) & O_APPEND);
    off_t offset = is_traced ? lseek(descriptor, 0, at_end ? SEEK_END : SEEK_CUR) : 0;
    if (!is_traced)
        put(SAID, 0, 0, NULL, 0, data, size);
    ssize_t written = syscall(SYS_write, descriptor, data, size);
    if (is_traced && written > 0)
        put(WRITE, inode_of(descriptor), (uint64_t)offset, NULL, 0, data, (size_t)written);
    pthread_mutex_unlock(&lock);
    return written;
}

int ftruncate64(int descriptor, off64_t size)
{
    char path[PATH];
    if (!below_root_at(descriptor, path))
        return (int)syscall(SYS_ftruncate, descriptor, size);
    pthread_mutex_lock(&lock);
    int failed = (int)syscall(SYS_ftruncate, descriptor, size);
    if (!failed)
        put(TRUNCATE, inode_of(descriptor), (uint64_t)size, NULL, 0, NULL, 0);
    pthread_mutex_unlock(&lock);
    return failed;
}

int ftruncate(int descriptor, off_t size) { return ftruncate64(descriptor, size); }

/* Copies within the kernel: Python falls back to the calls above. */
static int is_refused(int descriptor)
{
    char path[PATH];
    if (!below_root_at(descriptor, path))
        return 0;
    errno = ENOSYS;
    return 1;
}

ssize_t sendfile64(int to, int from, off64_t *offset, size_t size)
{
    return is_refused(to) ? -1 : syscall(SYS_sendfile, to, from, offset, size);
}

ssize_t copy_file_range(int from, off64_t *read, int to, off64_t *written, size_t size, unsigned int flags)
{
    return is_refused(to) ? -1 : syscall(SYS_copy_file_range, from, read, to, written, size, flags);
}

static int sync_traced(long number, int descriptor)
{
    char path[PATH];
    const char *name = below_root_at(descriptor, path), *unsynced = getenv("UNSYNCED");
    if (!name)
        return (int)syscall(number, descriptor);
    if (unsynced && !strcmp(strrchr(path, '/') + 1, unsynced))
        return 0;
    pthread_mutex_lock(&lock);
    uint64_t before = events;
    pthread_mutex_unlock(&lock);
    int failed = (int)syscall(number, descriptor);
    pthread_mutex_lock(&lock);
    if (!failed)
        put(SYNC, inode_of(descriptor), before, NULL, 0, NULL, 0);
    if (!failed && shared_index && ends_with(name, "-wal"))
        put(SHARED_INDEX, 0, 0, NULL, 0, shared_index, INDEX);
    pthread_mutex_unlock(&lock);
    return failed;
}

int fsync(int descriptor) { return sync_traced(SYS_fsync, descriptor); }
int fdatasync(int descriptor) { return sync_traced(SYS_fdatasync, descriptor); }

/* --- the end ----------------------------------------------------------------------------------------------------- */

/* Not between a change and its event. */
void _exit(int code)
{
    pthread_mutex_lock(&lock);
    syscall(SYS_exit_group, code);
    __builtin_unreachable();
}

/* --- the log's index, which is written in memory ------------------------------------------------------------------ */

void *mmap64(void *address, size_t size, int protection, int flags, int descriptor, off64_t offset)
{
    void *mapped = (void *)syscall(SYS_mmap, address, size, protection, flags, descriptor, offset);
    char path[PATH];
    const char *name = descriptor >= 0 && !offset ? below_root_at(descriptor, path) : NULL;
    if (mapped != MAP_FAILED && name && ends_with(name, "queue.db-shm") && size >= INDEX) {
        pthread_mutex_lock(&lock);
        shared_index = mapped;
        pthread_mutex_unlock(&lock);
    }
    return mapped;
}

void *mmap(void *address, size_t size, int protection, int flags, int descriptor, off_t offset)
{
    return mmap64(address, size, protection, flags, descriptor, offset);
}

int munmap(void *address, size_t size)
{
    pthread_mutex_lock(&lock);
    if (address == shared_index)
        shared_index = NULL;
    pthread_mutex_unlock(&lock);
    return (int)syscall(SYS_munmap, address, size);
}

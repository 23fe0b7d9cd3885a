/*
 * Faults of the machine, for the tests alone. Loaded with LD_PRELOAD into the service; for 64-bit Linux with glibc.
 *
 * FAULTS names a directory. What is in it counts from one call to the next:
 *
 *   sync   while it is there nothing of the queue's database reaches the disk: fsync and fdatasync fail with EIO
 *   write  while it is there no write to the database is taken: pwrite fails with EIO
 *   clock  holds the seconds by which the wall clock is wrong; the monotonic clock is left alone
 *   disk   a directory: in it is what a power loss leaves of the database, its pages that a sync has brought to disk
 *
 * After a sync that failed the kernel takes the pages for clean: no later sync brings them to disk, until they are
 * written again. Their contents stay in memory, where reads find them. The disk here does the same.
 */

#define _GNU_SOURCE
#include <errno.h>
#include <fcntl.h>
#include <pthread.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/stat.h>
#include <sys/syscall.h>
#include <sys/time.h>
#include <time.h>
#include <unistd.h>

enum { PAGE = 4096, PATH = 4096 };

static int in_faults(char path[PATH], const char *directory, const char *name, const char *ending)
{
    const char *faults = getenv("FAULTS");
    return faults && snprintf(path, PATH, "%s%s%s%s", faults, directory, name, ending) < PATH;
}

static int is_on(const char *fault)
{
    char path[PATH];
    return in_faults(path, fault, "", "") && !access(path, F_OK);
}

/* --- the wall clock ---------------------------------------------------------------------------------------------- */

/* Seconds to add. Read anew each time, so that a jump is one for the whole process at once. */
static long clock_error(void)
{
    char path[PATH], text[32] = {0};
    int saved = errno, file = in_faults(path, "/clock", "", "") ? open(path, O_RDONLY | O_CLOEXEC) : -1;
    if (file >= 0) {
        if (read(file, text, sizeof text - 1) < 0)
            text[0] = 0;
        close(file);
    }
    errno = saved;
    return strtol(text, NULL, 10);
}

int clock_gettime(clockid_t clock, struct timespec *now)
{
    int failed = (int)syscall(SYS_clock_gettime, clock, now);
    if (!failed && (clock == CLOCK_REALTIME || clock == CLOCK_REALTIME_COARSE))
        now->tv_sec += clock_error();
    return failed;
}

int gettimeofday(struct timeval *restrict now, void *restrict zone)
{
    int failed = (int)syscall(SYS_gettimeofday, now, zone);
    if (!failed)
        now->tv_sec += clock_error();
    return failed;
}

time_t time(time_t *result)
{
    struct timespec now;
    clock_gettime(CLOCK_REALTIME, &now);
    if (result)
        *result = now.tv_sec;
    return now.tv_sec;
}

/* --- what is on the disk ----------------------------------------------------------------------------------------- */

static pthread_mutex_t disk = PTHREAD_MUTEX_INITIALIZER;

/* The name of the database or its log behind a descriptor; NULL for any other file. */
static const char *name_of(int descriptor, char path[PATH])
{
    char link[64];
    snprintf(link, sizeof link, "/proc/self/fd/%d", descriptor);
    ssize_t length = readlink(link, path, PATH - 1);
    if (length < 0)
        return NULL;
    path[length] = 0;
    const char *name = strrchr(path, '/');
    return name && (!strcmp(name, "/queue.db") || !strcmp(name, "/queue.db-wal")) ? name : NULL;
}

/* A file of the disk: the copy, or with another ending the pages of it that are lost, a byte for each. */
static int open_on_disk(const char *name, const char *ending)
{
    char path[PATH];
    return !in_faults(path, "/disk", name, ending) ? -1 : open(path, O_RDWR | O_CREAT | O_CLOEXEC, 0600);
}

static int raw_pwrite(int file, const void *data, size_t size, off_t offset)
{
    return syscall(SYS_pwrite64, file, data, size, offset) == (long)size;
}

/* Bring to disk what is not lost; or lose what is not on the disk. */
static void settle(int file, const char *name, int lose)
{
    int copy = open_on_disk(name, ""), lost = open_on_disk(name, ".lost");
    struct stat now;
    if (!fstat(file, &now) && !lose && ftruncate(copy, now.st_size))
        abort();
    for (off_t page = 0; page * PAGE < now.st_size; page++) {
        char wanted[PAGE] = {0}, there[PAGE] = {0}, gone = 0;
        ssize_t size = pread(file, wanted, PAGE, page * PAGE);
        ssize_t before = pread(copy, there, PAGE, page * PAGE);
        if (size <= 0 || (before == size && !memcmp(wanted, there, PAGE)))
            continue;
        if (lose)
            raw_pwrite(lost, "x", 1, page);
        else if (pread(lost, &gone, 1, page) < 1 || !gone)
            if (!raw_pwrite(copy, wanted, (size_t)size, page * PAGE))
                abort();
    }
    close(copy);
    close(lost);
}

/* Pages that are written again are no longer lost. */
static void rewrite(const char *name, off_t offset, size_t size)
{
    int lost = open_on_disk(name, ".lost");
    struct stat now;
    if (!fstat(lost, &now))
        for (off_t page = offset / PAGE; page * PAGE < offset + (off_t)size && page < now.st_size; page++)
            raw_pwrite(lost, "\0", 1, page);
    close(lost);
}

static int sync_file(long number, int descriptor)
{
    char path[PATH];
    const char *name = name_of(descriptor, path);
    if (!name)
        return (int)syscall(number, descriptor);
    int fails = is_on("/sync");
    if (is_on("/disk")) {
        pthread_mutex_lock(&disk);
        settle(descriptor, name, fails);
        pthread_mutex_unlock(&disk);
    }
    if (!fails)
        return (int)syscall(number, descriptor);
    errno = EIO;
    return -1;
}

int fsync(int descriptor)
{
    return sync_file(SYS_fsync, descriptor);
}

int fdatasync(int descriptor)
{
    return sync_file(SYS_fdatasync, descriptor);
}

ssize_t pwrite64(int descriptor, const void *data, size_t size, off64_t offset)
{
    char path[PATH];
    const char *name = name_of(descriptor, path);
    if (name && is_on("/write")) {
        errno = EIO;
        return -1;
    }
    ssize_t written = syscall(SYS_pwrite64, descriptor, data, size, offset);
    if (name && written > 0 && is_on("/disk")) {
        pthread_mutex_lock(&disk);
        rewrite(name, offset, (size_t)written);
        pthread_mutex_unlock(&disk);
    }
    return written;
}

ssize_t pwrite(int descriptor, const void *data, size_t size, off_t offset)
{
    return pwrite64(descriptor, data, size, offset);
}

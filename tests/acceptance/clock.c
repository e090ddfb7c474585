/* A time of day that a test can put forward and back under a running program. It is loaded before the C library
 * (LD_PRELOAD) and adds the seconds that the file JUMPING_CLOCK holds, as one 64-bit number that all programs share. The
 * steady clocks stay as they are, as with a host's clock that is set.
 *
 * QEMU takes part only with JUMPING_QEMU: it has the kernel wait until a moment of the day, and the kernel's clock does not
 * jump. Forward is for it as if the clock were put back while it waits. */
#define _GNU_SOURCE
#include <dlfcn.h>
#include <errno.h>
#include <fcntl.h>
#include <stdint.h>
#include <stdlib.h>
#include <string.h>
#include <sys/mman.h>
#include <sys/syscall.h>
#include <sys/time.h>
#include <time.h>
#include <unistd.h>

static const volatile int64_t *ahead_s;
static int (*real_clock)(clockid_t, struct timespec *);

__attribute__((constructor)) static void begin(void)
{
    const char *path = getenv("JUMPING_CLOCK");
    int jumps = path && (getenv("JUMPING_QEMU") || strncmp(program_invocation_short_name, "qemu", 4) != 0);
    int file = jumps ? open(path, O_RDONLY | O_CLOEXEC) : -1;
    void *seen = file < 0 ? MAP_FAILED : mmap(NULL, sizeof *ahead_s, PROT_READ, MAP_SHARED, file, 0);

    if (seen != MAP_FAILED)
        ahead_s = seen;
    if (file >= 0)
        close(file);
    real_clock = (int (*)(clockid_t, struct timespec *))dlsym(RTLD_NEXT, "clock_gettime");
}

int clock_gettime(clockid_t clock, struct timespec *at)
{
    int failed = real_clock ? real_clock(clock, at) : (int)syscall(SYS_clock_gettime, clock, at);

    if (!failed && ahead_s && (clock == CLOCK_REALTIME || clock == CLOCK_REALTIME_COARSE))
        at->tv_sec += *ahead_s;
    return failed;
}

int gettimeofday(struct timeval *at, void *zone)
{
    struct timespec fine;

    (void)zone;
    clock_gettime(CLOCK_REALTIME, &fine);
    *at = (struct timeval){fine.tv_sec, fine.tv_nsec / 1000};
    return 0;
}

time_t time(time_t *at)
{
    struct timespec fine;

    clock_gettime(CLOCK_REALTIME, &fine);
    if (at)
        *at = fine.tv_sec;
    return fine.tv_sec;
}

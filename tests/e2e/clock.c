// SPDX-License-Identifier: Apache-2.0
// A wall clock that can be set, for a node that may not set the kernel's: seconds from the right time are read of the
// file that GB10_CLOCK names, mapped, so that a change of it is a jump for all that runs. Running time and waits are the
// kernel's own. libfaketime does more, and its clock_nanosleep() fails with EINVAL when it leaves CLOCK_MONOTONIC alone.
//
//     gcc -shared -fPIC -O2 -o clock.so clock.c;  LD_PRELOAD=.../clock.so GB10_CLOCK=.../offset program
#include <fcntl.h>
#include <stddef.h>
#include <stdint.h>
#include <stdlib.h>
#include <sys/mman.h>
#include <sys/syscall.h>
#include <sys/time.h>
#include <time.h>
#include <unistd.h>

static const volatile int64_t *offset_s;

__attribute__((constructor)) static void open_clock(void) {
    const char *path = getenv("GB10_CLOCK");
    int file = path ? open(path, O_RDONLY | O_CLOEXEC) : -1;
    if (file < 0)
        return;
    void *page = mmap(NULL, sizeof *offset_s, PROT_READ, MAP_SHARED, file, 0);
    close(file);
    if (page != MAP_FAILED)
        offset_s = page;
}

int clock_gettime(clockid_t clock, struct timespec *now) {
    int failed = (int)syscall(SYS_clock_gettime, clock, now);
    if (!failed && offset_s && (clock == CLOCK_REALTIME || clock == CLOCK_REALTIME_COARSE))
        now->tv_sec += *offset_s;
    return failed;
}

int gettimeofday(struct timeval *restrict now, void *restrict zone) {
    int failed = (int)syscall(SYS_gettimeofday, now, zone);
    if (!failed && offset_s)
        now->tv_sec += *offset_s;
    return failed;
}

time_t time(time_t *into) {
    struct timespec now;
    clock_gettime(CLOCK_REALTIME, &now);
    if (into)
        *into = now.tv_sec;
    return now.tv_sec;
}

/* Fills memory with pages that say where and when they were written, and verifies them.
 *
 *   filler MIB PASSES [UNTIL [LOSSES [SHARE]]]
 *
 * Pass 0 writes every page and verifies all; each later pass writes every third page anew and verifies all, in an
 * order that no read-ahead follows. At least PASSES passes; with UNTIL as long as that file is missing.
 * With SHARE only so manieth page is verified, which takes so much less time.
 * SIGBUS ends it at once; with LOSSES so many pages may go that way: they are left out, and all others still verified.
 * Then all but those pages is locked: what counts the losses must not be lost.
 * Prints one line for each step. Exit status: 0 all pages as written, 3 a page differs, 4 SIGBUS, 1 no memory.
 */
#define _GNU_SOURCE
#include <signal.h>
#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>
#include <sys/mman.h>
#include <time.h>
#include <unistd.h>

enum { PAGE = 4096, WORDS = PAGE / 8, EXIT_DIFFERS = 3, EXIT_SIGBUS = 4 };
static const uint32_t LOST = UINT32_MAX; /* in place of a page's generation */

static uint64_t mix(uint64_t x) {
    x += 0x9e3779b97f4a7c15u;
    x = (x ^ (x >> 30)) * 0xbf58476d1ce4e5b9u;
    x = (x ^ (x >> 27)) * 0x94d049bb133111ebu;
    return x ^ (x >> 31);
}

static uint64_t *memory;
static volatile uint32_t *generation; /* changed by a signal too */
static uint64_t pages, share = 1;
static unsigned long losses_allowed, losses;

static void write_page(uint64_t page, uint32_t pass) {
    uint64_t key = mix(page << 20 | pass);
    for (int i = 0; i < WORDS; i++) memory[page * WORDS + i] = key ^ (uint64_t)i * 0x9e3779b97f4a7c15u;
    if (generation[page] != LOST) generation[page] = pass;
}

static int differs(uint64_t page) {
    uint64_t key = mix(page << 20 | generation[page]);
    for (int i = 0; i < WORDS; i++)
        /* LOST is looked for last: the reading itself may be what loses the page. */
        if (memory[page * WORDS + i] != (key ^ (uint64_t)i * 0x9e3779b97f4a7c15u)) return generation[page] != LOST;
    return 0;
}

static void on_sigbus(int number, siginfo_t *info, void *context) {
    (void)number, (void)context;
    char line[80];
    uint64_t page = ((uintptr_t)info->si_addr - (uintptr_t)memory) / PAGE;
    int length = snprintf(line, sizeof line, "filler: SIGBUS in page %lu\n", page);
    if (write(1, line, (size_t)length) < 0) _exit(EXIT_SIGBUS);
    if (page >= pages || generation[page] == LOST || ++losses > losses_allowed) _exit(EXIT_SIGBUS);
    /* An empty page in its place, or the instruction would meet the same page again. */
    if (mmap(memory + page * WORDS, PAGE, PROT_READ | PROT_WRITE,
             MAP_PRIVATE | MAP_ANONYMOUS | MAP_NORESERVE | MAP_FIXED, -1, 0) == MAP_FAILED)
        _exit(EXIT_SIGBUS);
    generation[page] = LOST;
}

static double seconds(void) {
    struct timespec now;
    clock_gettime(CLOCK_MONOTONIC, &now);
    return (double)now.tv_sec + (double)now.tv_nsec * 1e-9;
}

static void verify(uint32_t pass) {
    uint64_t stride = 7919 % pages, bad = 0, page = 0;
    for (uint64_t i = 0; i < pages / share; i++) {
        /* 7919 is prime, so that every page is met once unless it divides their number. */
        page = pages % 7919 ? (page + stride) % pages : i;
        if (differs(page) && bad++ < 5) printf("filler: page %lu differs in pass %u\n", page, pass);
        if (i % (pages / 64) == 0) printf("filler: pass %u verified %lu of %lu MiB\n", pass, i / 256, pages / share / 256);
    }
    if (bad) {
        printf("filler: %lu of %lu pages differ\n", bad, pages);
        exit(EXIT_DIFFERS);
    }
}

int main(int argc, char **argv) {
    if (argc < 3) return 2;
    setvbuf(stdout, NULL, _IOLBF, 0);
    pages = strtoull(argv[1], NULL, 10) * 256;
    uint32_t passes = (uint32_t)strtoul(argv[2], NULL, 10);
    losses_allowed = argc > 4 ? strtoul(argv[4], NULL, 10) : 0;
    if (argc > 5) share = strtoull(argv[5], NULL, 10);
    memory = mmap(NULL, pages * PAGE, PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANONYMOUS | MAP_NORESERVE, -1, 0);
    generation = malloc(pages * sizeof *generation);
    if (memory == MAP_FAILED || !generation) return 1;
    if (losses_allowed && (mlockall(MCL_CURRENT | MCL_ONFAULT) || munlock(memory, pages * PAGE))) return 1;
    struct sigaction action = {.sa_sigaction = on_sigbus, .sa_flags = SA_SIGINFO};
    sigaction(SIGBUS, &action, NULL);
    for (uint32_t pass = 0; pass < passes || (argc > 3 && access(argv[3], F_OK)); pass++) {
        double from = seconds();
        for (uint64_t page = pass ? pass % 3 : 0; page < pages; page += pass ? 3 : 1) {
            write_page(page, pass);
            if (page % (pages / 64) < (pass ? 3 : 1)) printf("filler: pass %u wrote %lu of %lu MiB\n", pass, page / 256, pages / 256);
        }
        double written = seconds();
        verify(pass);
        printf("filler: pass %u good, wrote in %.1f s, verified in %.1f s\n", pass, written - from, seconds() - written);
    }
    printf("filler: all %lu pages as written\n", pages - losses);
    if (losses) printf("filler: but %lu lost by SIGBUS\n", losses);
    return losses ? EXIT_SIGBUS : 0;
}

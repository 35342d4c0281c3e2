/* Flips one bit of a filler's page where it lies in swap, behind the back of the server whose memory that is.
 *
 *   flipper PID MEMORY
 *
 * PID is a filler, MEMORY the device that the server serves (/dev/mmapper). Of the filler's pages that are in swap the
 * first is taken: it went out long ago, so that the kernel holds no copy of it. What lies at its place must be a page
 * of a filler, or nothing is changed. Prints "flipper: page N". Exit status: 0 flipped, 1 not.
 */
#define _GNU_SOURCE
#include <fcntl.h>
#include <inttypes.h>
#include <signal.h>
#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>
#include <sys/mman.h>
#include <sys/types.h>
#include <unistd.h>

enum { PAGE = 4096, WORD = 300, BIT = 17 };

/* Of an entry of /proc/PID/pagemap. */
static const uint64_t SWAPPED = UINT64_C(1) << 62;
static uint64_t slot_of(uint64_t entry) { return entry >> 5 & ((UINT64_C(1) << 50) - 1); }

/* The largest mapping of a filler is its pages. */
static uint64_t largest_mapping(const char *pid, uint64_t *end) {
    char path[64], line[512];
    uint64_t from, to, best = 0;
    snprintf(path, sizeof path, "/proc/%s/maps", pid);
    FILE *maps = fopen(path, "r");
    *end = 0;
    while (maps && fgets(line, sizeof line, maps))
        if (sscanf(line, "%" SCNx64 "-%" SCNx64, &from, &to) == 2 && to - from > *end - best) best = from, *end = to;
    if (maps) fclose(maps);
    return best;
}

static int flip(const char *pid, const char *device) {
    char path[64];
    uint64_t end, start = largest_mapping(pid, &end), entry, at;
    snprintf(path, sizeof path, "/proc/%s/pagemap", pid);
    int pagemap = open(path, O_RDONLY), memory = open(device, O_RDWR);
    if (pagemap < 0 || memory < 0) return perror("flipper: open"), 1;
    for (at = start; at < end; at += PAGE)
        if (pread(pagemap, &entry, sizeof entry, (off_t)(at / PAGE * sizeof entry)) != sizeof entry || entry & SWAPPED)
            break;
    if (at >= end || !(entry & SWAPPED)) return fputs("flipper: no page is in swap\n", stderr), 1;
    /* From its beginning: the device maps nothing else. */
    size_t size = (slot_of(entry) + 1) * PAGE;
    uint64_t *mapped = mmap(NULL, size, PROT_READ | PROT_WRITE, MAP_SHARED, memory, 0);
    if (mapped == MAP_FAILED) return perror("flipper: mmap"), 1;
    uint64_t *block = mapped + (size - PAGE) / sizeof *mapped;
    if ((block[0] ^ block[1]) != 0x9e3779b97f4a7c15u) return fputs("flipper: no page of a filler\n", stderr), 1;
    block[WORD] ^= UINT64_C(1) << BIT;
    printf("flipper: page %" PRIu64 "\n", (at - start) / PAGE);
    return 0;
}

int main(int argc, char **argv) {
    if (argc != 3 || mlockall(MCL_CURRENT)) return 2;
    pid_t pid = (pid_t)atoi(argv[1]);
    /* Stopped, so that the page is not fetched meanwhile; a write that is on its way needs a moment. */
    if (kill(pid, SIGSTOP)) return 1;
    sleep(2);
    int status = flip(argv[1], argv[2]);
    return kill(pid, SIGCONT) ? 1 : status;
}

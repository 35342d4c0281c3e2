/* A client that means no good, until a file appears.
 *
 *   hostile SOCKET KIND UNTIL
 *
 * KIND is storm (garbage, half a greeting, lengths of 4 GiB, half a request, 500 connects; again and again), unread (asks
 * for 1 MiB again and again and reads no reply) or scrape (asks 30 times for /metrics and reads nothing, always anew).
 * storm and unread enter the export that is called like them. storm also tries to enter the first export, which has its
 * client, and must be refused there. Neither writes where a client may write. Locked in memory, so that it goes on while
 * there is none. Prints how often it did what. Exit status 0, or 1 if it never got through, or got into the first export.
 */
#include <errno.h>
#include <fcntl.h>
#include <signal.h>
#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/mman.h>
#include <sys/socket.h>
#include <sys/time.h>
#include <sys/un.h>
#include <unistd.h>

enum { GREETING = 18, REQUEST = 28, READ = 0, WRITE = 1, CONNECTS = 500, SCRAPES = 30, MIB = 1 << 20 };

static const char *path, *until, *own_export;
static char block[65536];
static uint64_t state = 88172645463325252u;

static int over(void) { return access(until, F_OK) == 0; }

static void randomize(char *to, size_t length) {
    for (size_t at = 0; at < length; at++) {
        state ^= state << 13, state ^= state >> 7, state ^= state << 17;
        to[at] = (char)(state >> 32);
    }
}

static void put(char *to, int bytes, uint64_t value) {
    while (bytes--) to[bytes] = (char)value, value >>= 8;
}

/* Connected, or -1. Nothing here waits longer than two seconds for the server. */
static int dial(void) {
    struct sockaddr_un address = {.sun_family = AF_UNIX};
    struct timeval patience = {.tv_sec = 2};
    int sock = socket(AF_UNIX, SOCK_STREAM | SOCK_CLOEXEC, 0);
    strncpy(address.sun_path, path, sizeof address.sun_path - 1);
    if (sock < 0) return -1;
    setsockopt(sock, SOL_SOCKET, SO_RCVTIMEO, &patience, sizeof patience);
    setsockopt(sock, SOL_SOCKET, SO_SNDTIMEO, &patience, sizeof patience);
    if (!connect(sock, (struct sockaddr *)&address, sizeof address)) return sock;
    close(sock);
    return -1;
}

static int say(int sock, const void *what, size_t length) {
    return send(sock, what, length, MSG_NOSIGNAL) == (ssize_t)length;
}

static int hear(int sock, size_t length) {
    char buffer[256];
    return recv(sock, buffer, length, MSG_WAITALL) == (ssize_t)length;
}

/* An option with its length but without its data; client flags first. */
static int ask_option(int sock, uint32_t option, uint32_t length) {
    char message[20];
    put(message, 4, 3);
    memcpy(message + 4, "IHAVEOPT", 8);
    put(message + 12, 4, option);
    put(message + 16, 4, length);
    return hear(sock, GREETING) && say(sock, message, sizeof message);
}

/* In transmission with its own export, by EXPORT_NAME. */
static int enter(int sock) {
    size_t length = strlen(own_export);
    return ask_option(sock, 1, (uint32_t)length) && say(sock, own_export, length) && hear(sock, 10);
}

/* Refused as a second client of the first export, whose name may be empty: the connection ends without a reply. */
static int second_client(int sock) {
    char byte;
    if (!ask_option(sock, 1, 0)) return 0;
    if (recv(sock, &byte, 1, 0) == 1) {
        printf("hostile: entered the export that is attached\n");
        exit(1);
    }
    return 1;
}

static int request(int sock, int command, uint64_t offset, uint32_t length, size_t bytes) {
    char message[REQUEST] = {0x25, 0x60, (char)0x95, 0x13, 0, 0, 0, (char)command};
    put(message + 16, 8, offset);
    put(message + 24, 4, length);
    return say(sock, message, bytes);
}

static int garbage(int sock) {
    randomize(block, sizeof block);
    return hear(sock, GREETING) && say(sock, block, sizeof block / 8);
}

static int half_greeting(int sock) {
    int said = hear(sock, GREETING) && say(sock, "\0", 2);
    sleep(1);
    return said;
}

static int huge_option(int sock) {
    if (!ask_option(sock, 7, UINT32_MAX)) return 0;
    say(sock, block, sizeof block / 8); /* fails where the server has closed already */
    return 1;
}

static int huge_read(int sock) { return enter(sock) && request(sock, READ, 4096, UINT32_MAX, REQUEST); }

static int huge_write(int sock) {
    if (!enter(sock) || !request(sock, WRITE, 4096, UINT32_MAX - 4095, REQUEST)) return 0;
    /* As much as the server takes; all of it would be 4 GiB. */
    for (int i = 0; i < 64 && say(sock, block, sizeof block); i++)
        ;
    return 1;
}

static int half_request(int sock) { return enter(sock) && request(sock, READ, 0, 4096, REQUEST / 2); }

static int garbage_request(int sock) {
    randomize(block, sizeof block);
    return enter(sock) && say(sock, block, sizeof block / 8);
}

static const struct {
    const char *name;
    int (*act)(int sock);
} acts[] = {
    {"garbage", garbage},         {"half greeting", half_greeting}, {"huge option", huge_option},
    {"huge read", huge_read},     {"huge write", huge_write},       {"half request", half_request},
    {"garbage request", garbage_request}, {"second client", second_client},
};
enum { ACTS = sizeof acts / sizeof *acts };

static int storm(void) {
    unsigned done[ACTS] = {0}, connects = 0;
    int worst = 1;
    while (!over()) {
        for (int i = 0; i < ACTS; i++) {
            int sock = dial();
            if (sock < 0) continue;
            done[i] += acts[i].act(sock) > 0;
            close(sock);
            usleep(100000); /* so that the worker has let go of it */
        }
        for (int i = 0; i < CONNECTS && !over(); i++) {
            int sock = dial();
            if (sock < 0) continue;
            connects++;
            close(sock);
        }
    }
    for (int i = 0; i < ACTS; i++) {
        printf("hostile: %s %u times\n", acts[i].name, done[i]);
        worst = worst && done[i];
    }
    printf("hostile: connects %u\n", connects);
    return worst ? 0 : 1;
}

static int unread(void) {
    unsigned asked = 0, lives = 0;
    int sock = -1;
    while (!over()) {
        if (sock < 0 && (sock = dial()) >= 0) {
            if (enter(sock)) {
                lives++;
                fcntl(sock, F_SETFL, O_NONBLOCK);
            } else {
                close(sock);
                sock = -1;
            }
        }
        while (sock >= 0 && !over()) {
            if (request(sock, READ, (uint64_t)(asked % 4) * MIB, MIB, REQUEST)) {
                asked++;
            } else if (errno == EAGAIN) {
                usleep(100000);
            } else {
                close(sock);
                sock = -1;
            }
        }
        usleep(100000);
    }
    printf("hostile: asked %u times for 1 MiB and read nothing, in %u connections\n", asked, lives);
    return asked > 4 ? 0 : 1;
}

static int scrape(void) {
    static const char get[] = "GET /metrics HTTP/1.1\r\nHost: localhost\r\n\r\n";
    int socks[SCRAPES];
    unsigned asked = 0;
    memset(socks, -1, sizeof socks);
    for (unsigned next = 0; !over(); next++) {
        int *sock = &socks[next % SCRAPES];
        if (*sock >= 0) close(*sock);
        *sock = dial();
        if (*sock >= 0) asked += say(*sock, get, sizeof get - 1) > 0;
        usleep(200000);
    }
    printf("hostile: asked %u times for /metrics and read nothing\n", asked);
    return asked ? 0 : 1;
}

int main(int argc, char **argv) {
    if (argc != 4 || mlockall(MCL_CURRENT | MCL_FUTURE)) return 2;
    path = argv[1], own_export = argv[2], until = argv[3];
    signal(SIGPIPE, SIG_IGN);
    if (!strcmp(argv[2], "storm")) return storm();
    if (!strcmp(argv[2], "unread")) return unread();
    return strcmp(argv[2], "scrape") ? 2 : scrape();
}

/* stopper PID SECONDS: stops a process and continues it. Locked in memory, so that it comes through without any. */
#include <signal.h>
#include <stdlib.h>
#include <sys/mman.h>
#include <sys/types.h>
#include <unistd.h>

int main(int argc, char **argv) {
    if (argc != 3 || mlockall(MCL_CURRENT | MCL_FUTURE)) return 2;
    pid_t pid = (pid_t)atoi(argv[1]);
    if (kill(pid, SIGSTOP)) return 1;
    for (unsigned left = (unsigned)atoi(argv[2]); left;) left = sleep(left);
    return kill(pid, SIGCONT) ? 1 : 0;
}

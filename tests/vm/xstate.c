/*
 * Preloaded into User-Mode Linux on processors with more register state than it has room for.
 *
 * UML before Linux 6.13 takes a process's extended registers to be 2696 bytes (AVX-512 and PKRU). A host whose processor
 * has AMX keeps more, and PTRACE_SETREGSET wants all of it or fails with EFAULT. What UML does not know is left as the
 * process has it.
 */
#define _GNU_SOURCE
#include <dlfcn.h>
#include <elf.h>
#include <errno.h>
#include <stdarg.h>
#include <stdint.h>
#include <string.h>
#include <sys/ptrace.h>
#include <sys/types.h>
#include <sys/uio.h>

#define MOST_STATE 65536

typedef long ptrace_t(int, pid_t, void *, void *);

long ptrace(enum __ptrace_request request, ...)
{
	static ptrace_t *libc;
	static char whole[MOST_STATE];
	struct iovec all = { whole, sizeof(whole) };
	struct iovec *given;
	va_list list;
	long result;
	int before = errno;

	va_start(list, request);
	pid_t pid = va_arg(list, pid_t);
	void *address = va_arg(list, void *);
	void *data = va_arg(list, void *);
	va_end(list);

	if (!libc)
		libc = (ptrace_t *)dlsym(RTLD_NEXT, "ptrace");
	result = libc(request, pid, address, data);
	if (!result || errno != EFAULT || request != PTRACE_SETREGSET || (uintptr_t)address != NT_X86_XSTATE)
		return result;

	given = data;
	if (libc(PTRACE_GETREGSET, pid, address, &all) || given->iov_len >= all.iov_len) {
		errno = EFAULT;
		return -1;
	}
	memcpy(whole, given->iov_base, given->iov_len);
	result = libc(PTRACE_SETREGSET, pid, address, &all);
	if (!result)
		errno = before;
	return result;
}

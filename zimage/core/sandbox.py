"""Drop privileges and limit memory before a process decodes untrusted files.

The files are parsed by large libraries in C. Whoever takes over such a process through a crafted file should find no
secrets in it, and reach none: its parents hold them in their environment, which Linux shows to every process of the
same user unless Landlock separates the two.
"""

import ctypes
import os
import resource
import sys
from collections.abc import Mapping

# Variables that an interpreter and its libraries need. All others may be secrets.
ENVIRONMENT = ("PATH", "HOME", "LANG", "LC_ALL", "LC_CTYPE", "TZ", "TMPDIR", "LD_LIBRARY_PATH")
PR_SET_DUMPABLE, PR_SET_NO_NEW_PRIVS = 4, 38  # linux/prctl.h
CAPABILITY_VERSION = 0x20080522  # _LINUX_CAPABILITY_VERSION_3: two 32-bit words for each of three sets
FILE_CAPABILITIES = 1 << 1 | 1 << 2  # CAP_DAC_OVERRIDE, CAP_DAC_READ_SEARCH: root opens what its parent could open
CREATE_RULESET, RESTRICT_SELF = 444, 446  # landlock(7); the same numbers on all architectures
ABI_QUERY = 1  # LANDLOCK_CREATE_RULESET_VERSION
NET_ABI, SCOPE_ABI = 4, 6  # first versions of Landlock with rules about TCP; about signals and abstract sockets
MAKE_DEVICES = 1 << 6 | 1 << 11  # LANDLOCK_ACCESS_FS_MAKE_CHAR, _MAKE_BLOCK
TCP = 1 << 0 | 1 << 1  # LANDLOCK_ACCESS_NET_BIND_TCP, _CONNECT_TCP
SCOPES = 1 << 0 | 1 << 1  # LANDLOCK_SCOPE_ABSTRACT_UNIX_SOCKET, _SIGNAL


def small_environment(given: Mapping[str, str]) -> dict[str, str]:
    """Return the environment of a sandboxed process: without credentials, tokens and addresses."""
    return {name: given[name] for name in ENVIRONMENT if name in given}


def restrict(memory_bytes: int) -> None:
    """Restrict this process permanently: more address space, core files, privileges and TCP connections are refused.

    Where the kernel has Landlock, it can no longer read the memory or environment of processes outside, nor signal
    them; root could all the same, so root's capabilities go too. Elsewhere than on Linux only the limits hold.

    Args:
        memory_bytes: Address space that the process may have, what it has now included.
    """
    resource.setrlimit(resource.RLIMIT_CORE, (0, 0))
    allowed = resource.getrlimit(resource.RLIMIT_AS)[1]
    most = memory_bytes if allowed == resource.RLIM_INFINITY else min(memory_bytes, allowed)
    resource.setrlimit(resource.RLIMIT_AS, (most, most))
    if sys.platform != "linux":
        return
    libc = ctypes.CDLL(None, use_errno=True)
    libc.prctl(PR_SET_DUMPABLE, 0, 0, 0, 0)  # a limit of 0 does not stop a core that is piped into a program
    if libc.prctl(PR_SET_NO_NEW_PRIVS, 1, 0, 0, 0) != 0:
        raise OSError(ctypes.get_errno(), "PR_SET_NO_NEW_PRIVS was refused")
    _enter_landlock(libc)
    _drop_capabilities(libc)


def landlock_abi() -> int:
    """Return the version of Landlock that the kernel has; below 1 where it has none."""
    if sys.platform != "linux":
        return 0
    return int(ctypes.CDLL(None).syscall(CREATE_RULESET, None, ctypes.c_size_t(0), ABI_QUERY))


def _enter_landlock(libc: ctypes.CDLL) -> None:
    """Enter a Landlock domain without exceptions, as far as this kernel supports it."""
    abi = landlock_abi()
    if abi < 1:
        return
    handled = (MAKE_DEVICES, *[TCP][: abi >= NET_ABI], *[SCOPES][: abi >= SCOPE_ABI])
    attributes = (ctypes.c_uint64 * len(handled))(*handled)
    ruleset = libc.syscall(CREATE_RULESET, attributes, ctypes.c_size_t(ctypes.sizeof(attributes)), 0)
    if ruleset < 0 or libc.syscall(RESTRICT_SELF, ruleset, 0) != 0:
        raise OSError(ctypes.get_errno(), "Landlock could not be entered")
    os.close(ruleset)


def _drop_capabilities(libc: ctypes.CDLL) -> None:
    """Drop all capabilities except those that open files; no effect for users other than root."""
    header = (ctypes.c_uint32 * 2)(CAPABILITY_VERSION, 0)
    sets = (ctypes.c_uint32 * 6)()  # effective, permitted and inheritable, for the lower 32, then for the upper
    if libc.capget(header, sets) == 0:
        left = [word & FILE_CAPABILITIES for word in sets[:2]]
        libc.capset(header, (ctypes.c_uint32 * 6)(*left))

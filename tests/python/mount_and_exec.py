"""Makes a FUSE mount as root, gives up every privilege, and becomes the program that serves it.

    mount_and_exec.py HOW MOUNTPOINT USER PROGRAM ARGUMENT...

In the arguments, {} becomes the number of the descriptor. HOW is one of
    seen        the mount is seen by the program
    hidden      it is not: the program has a mount namespace without it
    unmounted   there is a descriptor of /dev/fuse, but no mount
    served      another process has taken the mount's first request already
    other       the descriptor is one of /dev/null
"""

import ctypes
import os
import sys

MS_RDONLY, MS_NOSUID, MS_NODEV, MS_REC, MS_PRIVATE = 1, 2, 4, 1 << 14, 1 << 18
MNT_DETACH = 2
CLONE_NEWNS = 0x20000

libc = ctypes.CDLL(None, use_errno=True)


def check(result):
    if result < 0:
        errno = ctypes.get_errno()
        raise OSError(errno, os.strerror(errno))


def mount(fd, mountpoint, user):
    options = f"fd={fd},rootmode=40000,user_id={user},group_id={user},allow_other,default_permissions"
    flags = MS_RDONLY | MS_NOSUID | MS_NODEV
    check(libc.mount(b"s3://data/", mountpoint.encode(), b"fuse.fasts3", flags, options.encode()))


def hide(mountpoint):
    check(libc.unshare(CLONE_NEWNS))
    check(libc.mount(b"none", b"/", None, MS_REC | MS_PRIVATE, None))
    check(libc.umount2(mountpoint.encode(), MNT_DETACH))


def main():
    how, mountpoint, user, program, *arguments = sys.argv[1:]
    user = int(user)
    # Not blocking, as a parent may have it that waits for several things.
    path = "/dev/null" if how == "other" else "/dev/fuse"
    fd = os.open(path, os.O_RDWR | os.O_NONBLOCK)
    if how not in ("unmounted", "other"):
        mount(fd, mountpoint, user)
    if how == "served":
        os.read(fd, 1 << 17)
    if how == "hidden":
        hide(mountpoint)
    os.set_inheritable(fd, True)
    os.setgroups([])
    os.setgid(user)
    os.setuid(user)
    os.execv(program, [program, *(argument.replace("{}", str(fd)) for argument in arguments)])


main()

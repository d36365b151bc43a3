"""Becomes a program as a service manager starts it, with descriptors from its store.

    as_manager.py MOUNT TABLE PROGRAM ARGUMENT...

MOUNT and TABLE are the numbers of descriptors that this process has inherited.
"""

import fcntl
import os
import sys

# Out of the way first: one of them may be where the other goes.
high = [fcntl.fcntl(int(number), fcntl.F_DUPFD, 100) for number in sys.argv[1:3]]
for target, descriptor in enumerate(high, 3):
    os.dup2(descriptor, target)
    os.close(descriptor)
os.environ.update(LISTEN_PID=str(os.getpid()), LISTEN_FDS="2", LISTEN_FDNAMES="mount:table")
os.execv(sys.argv[3], sys.argv[3:])

"""`python -m infra.local.fleet.snapshot HANDLER`: the runtime client, as a snapshot to be restored.

Owns what a snapshot is here: this process while its client waits in `restore/next`. Each answer is
a fork, which goes on in the client. It has all that Python knew; threads and what is C's own stay
behind, where a micro-VM would have them too.
"""

import os
import random
import sys

from awslambdaric.__main__ import main
from awslambdaric.lambda_runtime_client import LambdaRuntimeClient

_wait = LambdaRuntimeClient.restore_next


def _restore_next(client: LambdaRuntimeClient) -> None:
    while True:
        _wait(client)
        state = random.getstate()
        if os.fork() == 0:
            random.setstate(state)  # a fork draws anew, a copy of a micro-VM does not
            return


LambdaRuntimeClient.restore_next = _restore_next
main(sys.argv)

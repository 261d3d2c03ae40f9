"""torchrun, with the exit status of the worker that failed first: its own is 1 whatever went wrong.

The Job reads it: `densepath train` ends with 2 where the same command would only fail again.
"""

import sys

from torch.distributed.elastic.multiprocessing.errors import ChildFailedError
from torch.distributed.run import main

try:
    main()
except ChildFailedError as error:
    _, failure = error.get_first_failure()
    # A signal's number is negative here, and 128 more in a container's status.
    sys.exit(failure.exitcode if failure.exitcode > 0 else 128 - failure.exitcode)

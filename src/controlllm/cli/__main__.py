"""`python -m controlllm.cli` is `controlllm`."""

import sys

from controlllm.cli import main

sys.exit(main())

"""`python -m controlllm` is `controlllm`."""

import sys

from controlllm.cli import main

sys.exit(main())

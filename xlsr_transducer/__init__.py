"""A recipe that turns a pretrained XLSR network into a transducer that streams."""

import sys

from xlsr_transducer.core.errors import answer_interrupts

if sys.argv[0] == "-m":  # Python is looking for a command to run: python -m xlsr_transducer.train
    answer_interrupts()

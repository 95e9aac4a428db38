"""Programs of the recipe's stages."""

import xlsr_transducer  # noqa: F401  which answers Ctrl-C while a program is imported

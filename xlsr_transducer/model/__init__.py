"""Networks, from XLSR to the joiner. Whoever imports one computes float32 exactly."""

from xlsr_transducer.core import compat  # noqa: F401  it switches TF32 off

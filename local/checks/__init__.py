"""The checks of stage 4: faults, which are errors, and flags, which are warnings."""

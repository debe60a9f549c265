"""Looking closer: reports, comparisons, other losses and architectures."""

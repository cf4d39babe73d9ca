"""Ray and storage: how the work spreads over machines."""

"""The science: networks, scoring, CRF refinement, training and metrics; torch and numpy only."""

// What a row of router scores says as a whole. Scores that are not finite are masked experts and count for nothing.
#pragma once

// Of the finite scores; the lowest above the highest where there is none.
struct score_extent { float lowest, highest; };
score_extent score_row_extent(const float * z, int experts);

// e^(z - highest), the mass of one score before any division: 1 for the highest.
double score_mass(float z, float highest);
// The sum of all masses. The same bits on every processor.
double score_row_mass(const float * z, int experts, float highest);

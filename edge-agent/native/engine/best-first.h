// Scores from the best down, one at a time: for whoever wants the first few, or does not know how many. Equals come by index.
//
// Each step is one search for a maximum, which takes no branch that the processor could guess wrong; sorting takes many.
#pragma once

#include <cstdint>

// What stands in `keys` for an expert that is not to be found.
static const int32_t BEST_FIRST_NONE = INT32_MIN;

// Fills keys[experts]; scores that are not finite are not to be found.
void best_first_begin(const float * z, int experts, int32_t * keys);
// The best that is left, which is left no longer; -1 where none is.
int best_first_next(int32_t * keys, int experts);

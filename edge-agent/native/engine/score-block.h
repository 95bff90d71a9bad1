// The scores of some consecutive events of one layer, and the predictor's inputs that they and those of the layer below make: each row is
// made ready once for both layers' use, and all rows in a row, since none waits for another.
#pragma once

#include "engine-replay.h"
#include "reuse-predictor.h"

enum { SCORE_BLOCK = 128 };  // events at most

struct score_block {
    explicit score_block(int experts);
    int experts;
    int64_t first = 0;                        // event
    std::vector<const float *> rows;          // in the trace, or in `scratch`
    std::vector<float> scratch;               // SCORE_BLOCK rows
    reuse_row inputs, inputs_below;           // SCORE_BLOCK rows
    std::vector<uint8_t> known, known_below;  // whether there are inputs, that is, some score is finite
};

// Events [from, to) of `layer`; those of the layer below, unless this is the first, were the block's before. Needs a trace with scores.
void score_block_take(score_block & block, const route_trace & trace, int layer, int64_t from, int64_t to);
reuse_scores score_block_of(const score_block & block, int64_t event);

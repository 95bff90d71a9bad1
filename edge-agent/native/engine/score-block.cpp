#include "score-block.h"

#include "route-trace.h"
#include "widest-vectors.h"

#include <algorithm>

score_block::score_block(int experts)
    : experts(experts), rows(SCORE_BLOCK), scratch(size_t(experts) * SCORE_BLOCK), inputs(size_t(whole_lanes(experts)) * SCORE_BLOCK),
      inputs_below(inputs.size()), known(SCORE_BLOCK), known_below(SCORE_BLOCK) {}

void score_block_take(score_block & block, const route_trace & trace, int layer, int64_t from, int64_t to) {
    std::swap(block.inputs, block.inputs_below);
    std::swap(block.known, block.known_below);
    if (layer == 0) std::fill(block.known_below.begin(), block.known_below.end(), 0);
    block.first = from;
    for (int64_t t = from; t < to; t++) {
        const size_t i = size_t(t - from);
        block.rows[i] = route_trace_scores(trace, layer, t, block.scratch.data() + i * size_t(block.experts));
        block.known[i] = reuse_inputs_of(block.rows[i], block.experts, block.inputs.data() + i * size_t(whole_lanes(block.experts)));
    }
}

reuse_scores score_block_of(const score_block & block, int64_t event) {
    const size_t i = size_t(event - block.first), at = i * size_t(whole_lanes(block.experts));
    reuse_scores scores;
    scores.here = block.rows[i];
    if (block.known[i]) scores.here_inputs = block.inputs.data() + at;
    if (block.known_below[i]) scores.below_inputs = block.inputs_below.data() + at;
    return scores;
}

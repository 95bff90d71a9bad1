// Which experts a token uses: cache-conditional routing (arXiv 2412.00099), as pure functions of values.
//
//   R = max(z) - min(z);  delta = running mean of R over the tokens the layer has seen, this one included
//   bonus(e) = lambda * delta if e is resident or among the topJ largest of z, else 0
//   selected = K largest of z + bonus
//
// The bonus ranks only: gate weights are gathered afterwards from the unbiased scores by the model's own graph.
// Scores that are not finite are masked experts; they enter neither the range nor the selection.
#pragma once

#include "engine.h"

// Running mean of logit ranges of one layer, over every token it has seen.
struct range_mean {
    double sum = 0;
    uint64_t tokens = 0;
};

// max - min over the finite entries of z[experts]; 0 where none is finite.
float route_range(const float * z, int experts);
void range_mean_add(range_mean & mean, float range);
double range_mean_value(const range_mean & mean);

struct route_outcome {
    int swaps = 0;         // selected experts outside the unbiased top-K
    double mass_lost = 0;  // softmax(z) mass of the unbiased top-K minus that of the selected
};

// `ids[k]` comes in as the model's own choice, best first, and leaves as the biased one, best first by biased
// score. Ties keep the model's order, then the lower index. ROUTING_ORIGINAL and lambda 0 leave `ids` untouched,
// as does a row with fewer than k finite scores. `resident[experts]` holds 0 or 1. 1 <= k <= ROUTE_MAX_K.
enum { ROUTE_MAX_K = 128 };
route_outcome route_select(const float * z, int experts, const uint8_t * resident, engine_routing routing,
                           double lambda, int top_j, double delta, int32_t * ids, int k);

// Which experts a token uses, as pure functions of values. Ranks are the model's own: its top-K in its order, then the
// other experts by falling z, then by index. K is the model's; R and delta belong to `cache_prior`.
//
//   original              the model's own top-K
//   cache_prior           K largest of z + bonus; bonus(e) = lambda * delta if e is resident or of rank < topJ, else 0;
//                         delta = running mean of R = max(z) - min(z) over the tokens of the layer, this one included
//   max_rank              ranks < topJ, then residents of rank < M, then the rest, each in the model's order, up to K
//   cumulative_threshold  max_rank with M, for each token, the shortest prefix of the ranks whose softmax(z) mass is >= p
//   pruned                ranks < topJ and residents among the model's top-K; the others are dropped, so fewer than K
//   sensitivity           the model's top-K with its rank r (1: the best) replaced by a random expert from outside of it
//
// All but `sensitivity`, which measures what a rank is worth, are of arXiv 2412.00099. Gate weights are gathered
// afterwards from the unbiased scores by the model's own graph, so the choice is all that changes. Scores that are not
// finite are masked experts; they enter neither the range nor the mass nor the selection.
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

// A spec as one layer sees it.
struct route_policy {
    engine_routing routing = ROUTING_ORIGINAL;
    double lambda = 0;
    int top_j = 0;             // at least 1 where routing is ROUTING_PRUNED
    int max_rank = 0;
    double mass_threshold = 0;
    int rank = 0;
    uint64_t seed = 0;
};
// `layer` is an index into the MoE layers; those before the spec's first biased one are ROUTING_ORIGINAL.
route_policy route_policy_of(const engine_spec & spec, int layer);

struct route_input {
    const float * z;           // experts scores
    int experts;
    const uint8_t * resident;  // 0 or 1 per expert, before the token touches anything
    double delta;
    int layer;                 // these two and the policy's seed decide a random choice
    uint64_t token;            // of the layer, counted from 1
    int32_t * ranking;         // scratch, `experts` long
};

struct route_outcome {
    int kept = 0;          // experts used: k, or fewer where some were dropped
    int swaps = 0;         // selected experts outside the model's top-K
    double mass_lost = 0;  // softmax(z) mass of the model's top-K minus that of the selected
};

// `ids[k]` comes in as the model's own choice, best first, and leaves as ours: by biased score for `cache_prior`, by
// rank for the others, the replacement in its predecessor's place for `sensitivity`. Dropped experts leave their slots
// at the end, where they hold ids[0] so that nothing else is touched; `route_drop_weights` makes them count for nothing.
// ROUTING_ORIGINAL, a lambda of 0 and a row with fewer than k finite scores leave `ids` untouched. Ties go by rank.
// 1 <= k <= ROUTE_MAX_K.
enum { ROUTE_MAX_K = 128 };
route_outcome route_select(const route_policy & policy, const route_input & in, int32_t * ids, int k);

// Takes the slots from `kept` on out of a token's gate weights, as gathered from the gate by the selected ids. A weight
// of 0 adds nothing; where the model still puts a softmax over the selected, the value that it turns into 0 is -inf.
// A model that normalises the weights afterwards does so over those that are left.
void route_drop_weights(float * weights, int kept, int k, bool softmax_follows);

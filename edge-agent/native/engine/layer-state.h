// What routing remembers of one MoE layer: the logical cache, the running mean of ranges, and the tallies; and the routing
// event, the one place where a token's choice meets the cache. The engine has one array of layers for its real cache; a
// batched evaluation and a replay make virtual ones of their own.
#pragma once

#include "counters.h"
#include "expert-cache.h"
#include "routing.h"

#include <memory>

// Of one expert, over decoded tokens: how often it was among the model's own top-K, and how often it was selected.
struct expert_use { counter<int64_t> wanted, chosen; };

struct layer_state {
    expert_cache cache;
    range_mean range;
    layer_tally tally;
    std::unique_ptr<expert_use[]> use;  // per expert
};

// Fixed length, since tallies are atomics and do not move.
struct layer_states {
    std::unique_ptr<layer_state[]> of;
    int count = 0;
    layer_state & operator[](int i) { return of[size_t(i)]; }
    const layer_state & operator[](int i) const { return of[size_t(i)]; }
};

void layer_states_init(layer_states & states, int experts, const engine_spec & spec);
// Empties the caches and forgets the means; keeps the tallies.
void layer_states_reset(layer_states & states);

// One token of one layer: its range enters the mean, its experts are chosen by `policy` (null: left as the model chose
// them), looked up, touched and admitted, others evicted. `ids[k]` comes in as the model's own choice and leaves as what is
// used (route_select); the outcome's `kept` of them count. `event.missed` and `event.evicted` have room for k, `ranking`
// for all experts. Without `scores.here`, as in a record of choices alone, nothing can be bent.
route_outcome layer_state_route(layer_state & state, int layer, const route_policy * policy, const reuse_scores & scores,
                                int32_t * ids, int k, int32_t * ranking, cache_event & event);
// Counts a decoded token of k slots.
void layer_state_count(layer_state & state, const route_outcome & routed, const cache_event & event, int k);
